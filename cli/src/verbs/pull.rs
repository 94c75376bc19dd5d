//! `servin pull`, and the pull of an image that `run` and `create` lack.

use servin_engine::Error as Failure;
use servin_engine::image::{BASE, Images, Platform, Pulled, Reference};
use servin_engine::registry::{Accounts, Cancel, Client, Patience, Settings};

use super::transfer::Transfer;
use crate::args::Global;
use crate::error::{Error, Result};
use crate::output;

/// Pulls an image and prints what came.
pub(crate) fn run(global: &Global, image: &str, quiet: bool, platform: Option<&str>) -> Result<u8> {
    let platform = platform.map_or_else(|| Ok(Platform::native()), str::parse)?;
    let name: Reference = image.parse()?;
    if !quiet && name.digest().is_none() && !image.ends_with(&format!(":{}", name.tag().unwrap_or_default()))
    {
        output::text("Using default tag: latest\n");
    }
    let pulled = pull(global, &name, &platform, quiet)?;
    let text = match quiet {
        true => format!("{name}\n"),
        false => format!("Digest: {}\nStatus: {}\n{name}\n", pulled.digest, status(&pulled, &name)),
    };
    output::text(&text);
    Ok(0)
}

/// Pulls what `run` and `create` need: all that is shown goes to standard error.
pub(crate) fn for_container(global: &Global, image: &str, platform: &Platform, quiet: bool) -> Result<()> {
    let name: Reference = image.parse().map_err(|error| Error::Engine { error, code: 125 })?;
    let pulled = pull(global, &name, platform, quiet).map_err(|error| error.with_code(125))?;
    if !quiet {
        output::note(&format!("Digest: {}\nStatus: {}\n", pulled.digest, status(&pulled, &name)));
    }
    Ok(())
}

/// Whether an image has to be pulled before a container can be made from it.
pub(crate) fn is_missing(global: &Global, image: &str) -> Result<bool> {
    if comes_with_us(image) {
        return Ok(false);
    }
    let store = super::store(global)?;
    match Images::new(&store).find(image) {
        // What is neither a name nor an id is for `find` to refuse.
        Err(Failure::NoSuchImage { .. }) => Ok(image.parse::<Reference>().is_ok()),
        _ => Ok(false),
    }
}

/// The image that comes with the program is never asked for at a registry by `run`: nobody knows who answers there.
pub(crate) fn comes_with_us(image: &str) -> bool {
    image.parse::<Reference>().is_ok_and(|name| name.to_string() == BASE)
}

fn status(pulled: &Pulled, name: &Reference) -> String {
    match pulled.is_new {
        true => format!("Downloaded newer image for {}", name.familiar()),
        false => format!("Image is up to date for {}", name.familiar()),
    }
}

fn pull(global: &Global, name: &Reference, platform: &Platform, quiet: bool) -> Result<Pulled> {
    let store = super::store(global)?;
    let client = client()?;
    let transfer = Transfer::new(quiet);
    let wanted = name.digest().map_or_else(|| name.tag().unwrap_or("latest").to_owned(), |d| d.to_string());
    transfer.say(&format!("{wanted}: Pulling from {}", name.familiar_name()));
    let cancel = Cancel::default();
    Ok(Images::new(&store).pull(name, platform, &client, &cancel, &|step| transfer.pulled(step))?)
}

/// A client with the user's settings and accounts.
pub(super) fn client() -> Result<Client> {
    let settings = Settings::load().map_err(Failure::from)?;
    Ok(Client::new(settings, Accounts::usual(), Patience::default()))
}
