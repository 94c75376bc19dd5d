//! Root file systems of images: one read-only EROFS file per image, built from its layers without unpacking anything on the
//! host. It needs no root, and a hostile layer finds no path to write to.
//!
//! Two passes over the layers: the first builds the tree in memory (`tree`, metadata only: about 250 bytes a file), then
//! everything gets its place (`plan`), and the second copies the data of the files that survived (`write`). So a file that
//! an upper layer replaces takes no space, at the price of decompressing twice; memory does not grow with the data.

mod format;
mod image;
mod plan;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]
pub(crate) mod reader;
#[cfg(test)]
mod tests;
mod tree;
mod write;

pub(crate) use image::Image;
pub(crate) use tree::Tree;
pub(crate) use write::{Layers, write};

/// Version of what the writer makes of the same layers; part of the file's name.
const VERSION: u32 = 1;

/// The end of a root file system's file name, after the image's hexadecimal id.
pub(crate) fn suffix() -> String {
    format!(".v{VERSION}.erofs")
}
