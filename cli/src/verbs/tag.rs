//! `servin tag`.

use servin_engine::image::{Images, Reference, guest_directory};

use super::progress::Line;
use crate::args::Global;
use crate::error::Result;

/// Gives an image another name.
pub(crate) fn run(global: &Global, source: &str, target: &str) -> Result<u8> {
    let target: Reference = target.parse()?;
    let store = super::store(global)?;
    let images = Images::new(&store);
    let line = Line::new(false);
    let image =
        images.find_or_base(source, guest_directory().as_deref(), &mut |progress| line.show(progress))?;
    images.tag(&image.id.to_string(), &target)?;
    Ok(0)
}
