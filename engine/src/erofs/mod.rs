//! Root file systems of images: one read-only EROFS file per image, built from its layers without unpacking on the host.

/// Version of what the writer makes of the same layers; part of the file's name.
const VERSION: u32 = 1;

/// The end of a root file system's file name, after the image's hexadecimal id.
pub(crate) fn suffix() -> String {
    format!(".v{VERSION}.erofs")
}
