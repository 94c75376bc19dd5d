//! `servin create`.

use std::io::Write;

use servin_engine::container::{self, RootSource};
use servin_engine::store::Record;

use super::containers::open;
use super::run::{Here, borrow_volumes, new_file};
use crate::args::{self, Global};
use crate::error::{Error, Result};
use crate::{output, spec};

/// Makes a container and prints its id.
pub(crate) fn run(global: &Global, mut typed: args::Run) -> Result<u8> {
    // Nobody is attached to it yet, so that no terminal is needed here.
    typed.detach = true;
    let mut spec = spec::run(typed, &Here)?;
    borrow_volumes(global, &mut spec)?;
    let cidfile = spec.cidfile.as_deref().map(new_file).transpose()?;
    let image = match &spec.request.root {
        RootSource::Image(image) => Some(image.as_str()),
        RootSource::Directory(_) => None,
    };
    if let (spec::Pull::Always, Some(image)) = (spec.pull, image)
        && !super::pull::comes_with_us(image)
    {
        super::pull::for_container(global, image, &spec.platform, spec.quiet)?;
    }
    let make = || -> Result<Record> {
        let store = open(global).map_err(|error| error.with_code(125))?;
        container::create(&store, &spec.request).map_err(|error| Error::Engine { error, code: 125 })
    };
    let record = match (make(), spec.pull, image) {
        (Err(error), spec::Pull::Missing, Some(image)) => {
            if !super::pull::is_missing(global, image).map_err(|error| error.with_code(125))? {
                return Err(error);
            }
            output::note(&format!("Unable to find image '{image}' locally\n"));
            super::pull::for_container(global, image, &spec.platform, spec.quiet)?;
            make()?
        }
        (made, ..) => made?,
    };
    if let Some(mut file) = cidfile
        && let Err(error) = file.write_all(record.id.as_bytes())
    {
        output::line(&format!("cannot write the id to the cidfile: {error}"), None);
    }
    output::text(&format!("{}\n", record.id));
    Ok(0)
}
