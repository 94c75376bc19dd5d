//! `servin save`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use servin_engine::image::{Images, guest_directory};

use super::progress::Line;
use crate::args::Global;
use crate::error::{Error, Result};

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
    match output.filter(|output| *output != "-") {
        Some(path) => to_file(&images, &names, Path::new(path))?,
        None if io::stdout().is_terminal() => {
            let what = "standard output is a terminal: name a file with -o FILE, or redirect it".into();
            return Err(Error::Usage { what, verb: "save".into() });
        }
        None => images.save(&names, &mut BufWriter::with_capacity(1 << 18, io::stdout().lock()))?,
    }
    Ok(0)
}

/// Writes a file that appears whole or not at all. A device or a pipe is written as it is.
fn to_file(images: &Images<'_>, names: &[&str], path: &Path) -> Result<()> {
    let fail = |what: &str, path: &Path, source| Error::Host {
        what: format!("{what} {}", path.display()),
        source,
        code: 1,
    };
    let special = fs::metadata(path).is_ok_and(|meta| !meta.is_file());
    let part = if special { path.to_path_buf() } else { part_of(path) };
    let open = if special { File::options().write(true).open(&part) } else { File::create_new(&part) };
    let file = open.map_err(|source| fail("write", path, source))?;
    let mut out = BufWriter::with_capacity(1 << 18, file);
    let saved = images.save(names, &mut out).map_err(Error::from).and_then(|()| {
        let flushed = out.flush().and_then(|()| if special { Ok(()) } else { fs::rename(&part, path) });
        flushed.map_err(|source| fail("write", path, source))
    });
    if saved.is_err() && !special {
        let _ = fs::remove_file(&part);
    }
    saved
}

/// A name beside the file's.
fn part_of(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}
