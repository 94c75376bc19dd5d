//! `servin export`.

use std::ffi::OsStr;
use std::io::Write;
use std::time::Instant;

use servin_engine::files::{Client, FilesAsk, TarWriter};

use super::files::{server, to_output};
use crate::args::Global;
use crate::error::{Error, Result};

/// Writes a container's file system as a tar.
pub(crate) fn run(global: &Global, began: Instant, output: Option<&OsStr>, name: &str) -> Result<u8> {
    let (_, mut client) = server(global, began, name)?;
    to_output("export", output, |out| {
        client.ask(&FilesAsk::Export)?;
        archive(&mut client, out, &|path| Some(path.to_vec())).map(drop)
    })?;
    client.finish()?;
    Ok(0)
}

/// Writes an answer as a tar; says how many entries there were.
pub(super) fn archive(
    client: &mut Client,
    out: &mut dyn Write,
    name: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<u64> {
    let mut tar = TarWriter::new(out);
    let count = tar.receive(client, name)?;
    tar.finish().map_err(|source| Error::Host { what: "write the archive".into(), source, code: 1 })?;
    Ok(count)
}
