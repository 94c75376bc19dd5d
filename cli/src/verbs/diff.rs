//! `servin diff`.

use std::time::Instant;

use servin_engine::files::{ChangeKind, FilesAsk, Told};

use super::files::server;
use crate::args::Global;
use crate::error::Result;
use crate::output;

/// Prints how a container differs from its image.
pub(crate) fn run(global: &Global, began: Instant, name: &str) -> Result<u8> {
    let (_, mut client) = server(global, began, name)?;
    client.ask(&FilesAsk::Changes)?;
    let mut all = Vec::new();
    while let Some(told) = client.told()? {
        if let Told::Change(kind, path) = told {
            all.push((path, kind));
        }
    }
    client.finish()?;
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut text = String::new();
    for (path, kind) in all {
        let letter = match kind {
            ChangeKind::Changed => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        };
        text.push_str(&format!("{letter} {}\n", String::from_utf8_lossy(&path)));
    }
    output::text(&text);
    Ok(0)
}
