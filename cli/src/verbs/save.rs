//! `servin save`.

use std::ffi::OsStr;

use servin_engine::image::{Images, guest_directory};

use super::progress::Line;
use crate::args::Global;
use crate::error::Result;

/// Writes images into a file or to standard output.
pub(crate) fn run(global: &Global, names: &[String], output: Option<&OsStr>) -> Result<u8> {
    let store = super::store(global)?;
    let images = Images::new(&store);
    let line = Line::new(false);
    for name in names {
        images.find_or_base(name, guest_directory().as_deref(), &mut |progress| line.show(progress))?;
    }
    drop(line);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    super::files::to_output("save", output, |out| Ok(images.save(&names, out)?))?;
    Ok(0)
}
