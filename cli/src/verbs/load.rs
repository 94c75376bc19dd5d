//! `servin load`.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::Path;

use servin_engine::image::{Images, Platform, Source};

use super::progress::Line;
use crate::args::Global;
use crate::error::{Error, Result};
use crate::output;

/// Loads the images of an archive and prints their names.
pub(crate) fn run(global: &Global, input: Option<&OsStr>, quiet: bool, platform: Option<&str>) -> Result<u8> {
    let platform = platform.map_or_else(|| Ok(Platform::native()), str::parse)?;
    let store = super::store(global)?;
    let images = Images::new(&store);
    let line = Line::new(quiet);
    let mut show = |progress: servin_engine::image::Progress<'_>| line.show(progress);
    let loaded = match input.filter(|input| *input != "-") {
        Some(path) => images.load(Source::Path(Path::new(path)), &platform, &mut show)?,
        None if io::stdin().is_terminal() => {
            let what = "standard input is a terminal: name an archive with -i FILE, or pipe one in".into();
            return Err(Error::Usage { what, verb: "load".into() });
        }
        None => images.load(Source::Stream(&mut io::stdin().lock()), &platform, &mut show)?,
    };
    drop(line);
    let mut text = String::new();
    for image in loaded {
        for name in &image.names {
            text.push_str(&format!("Loaded image: {}\n", name.familiar()));
        }
        if image.names.is_empty() {
            text.push_str(&format!("Loaded image ID: {}\n", image.id));
        }
    }
    output::text(&text);
    Ok(0)
}
