//! The progress of long work: a line on a terminal's standard error, nothing elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use servin_engine::image::Progress;

use crate::human;

/// A line that shows how far the loading of an image is. It is gone when this is dropped.
pub(crate) struct Line(Option<ProgressBar>);

impl Line {
    /// A line, or none where nobody would see it.
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet || !io::stderr().is_terminal() {
            return Line(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Line(Some(bar))
    }

    /// Shows a step.
    pub(crate) fn show(&self, progress: Progress<'_>) {
        let Some(bar) = &self.0 else { return };
        match progress {
            Progress::Reading { bytes } => bar.set_message(format!("reading {}", human::size(bytes))),
            Progress::Checking { layer, number, of } => {
                bar.set_message(format!("layer {number} of {of}: checking {}", layer.short()));
            }
            Progress::Building { image } => {
                bar.set_message(format!("writing the root file system of {}", image.short()));
            }
            _ => {}
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
