//! `servin import`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read};

use servin_engine::image::{Images, Platform};

use crate::args::{About, Global};
use crate::error::{Error, Result};
use crate::output;

/// Makes an image of a tar and prints its id.
pub(crate) fn run(
    global: &Global,
    about: &About,
    platform: Option<&str>,
    source: &OsStr,
    reference: Option<&str>,
) -> Result<u8> {
    let mut composed = super::commit::about(about, reference)?;
    composed.created_by = "servin import".into();
    let platform = platform.map_or_else(|| Ok(Platform::native()), str::parse)?;
    let named = source.to_str().unwrap_or_default();
    if named.starts_with("http://") || named.starts_with("https://") {
        return Err(Error::NotBuilt { what: "import from a URL".into(), code: 1 });
    }
    if source == "-" && io::stdin().is_terminal() {
        let what = "standard input is a terminal: name a file, or pipe one in".into();
        return Err(Error::Usage { what, verb: "import".into() });
    }
    let store = super::store(global)?;
    let mut input: Box<dyn Read> = if source == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(source).map_err(|error| Error::Host {
            what: format!("open {}", source.display()),
            source: error,
            code: 1,
        })?)
    };
    let made = Images::new(&store).import(&mut *input, &platform, &composed)?;
    output::text(&format!("{}\n", made.id));
    Ok(0)
}
