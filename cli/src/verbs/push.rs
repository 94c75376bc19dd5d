//! `servin push`.

use servin_engine::image::{Images, Reference};
use servin_engine::registry::Cancel;

use super::transfer::Transfer;
use crate::args::Global;
use crate::error::{Error, Result};
use crate::output;

/// Pushes an image, or all tags of a name, and prints the digests.
pub(crate) fn run(global: &Global, image: &str, quiet: bool, all_tags: bool) -> Result<u8> {
    let name: Reference = image.parse()?;
    let store = super::store(global)?;
    let images = Images::new(&store);
    let names = if all_tags {
        if image != name.familiar_name() && image != name.name() {
            let what = format!("with --all-tags a name has no tag of its own: {image}");
            return Err(Error::Usage { what, verb: "push".into() });
        }
        let mut names = Vec::new();
        for image in images.list()? {
            names.extend(images.names(&image.id)?.into_iter().filter(|known| known.name() == name.name()));
        }
        if names.is_empty() {
            return Err(servin_engine::Error::NoSuchImage { reference: image.into() }.into());
        }
        names.sort();
        names
    } else {
        vec![name]
    };
    let client = super::pull::client()?;
    for name in &names {
        let transfer = Transfer::new(quiet);
        transfer.say(&format!("The push refers to repository [{}]", name.name()));
        let pushed = images.push(name, &client, &Cancel::default(), &|step| transfer.pushed(step))?;
        drop(transfer);
        output::text(&match quiet {
            true => format!("{name}\n"),
            false => format!(
                "{}: digest: {} size: {}\n",
                name.tag().unwrap_or_default(),
                pushed.digest,
                pushed.size
            ),
        });
    }
    Ok(0)
}
