//! How far a pull or push is: a bar for each layer on a terminal, plain lines elsewhere, all on standard error.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use servin_engine::image::{BlobState, Digest, Progress, PullStep, PushStep};
use servin_engine::registry::Uploaded;

use crate::human;

const BAR: &str = "{prefix}: {wide_msg} {bytes:>10} / {total_bytes:<10} {bar:20}";
const WORDS: &str = "{prefix}: {wide_msg}";

/// Shows a transfer. It has no thread of its own: it moves when the transfer does.
pub(crate) struct Transfer {
    /// On a terminal.
    bars: Option<MultiProgress>,
    quiet: bool,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    blobs: HashMap<Digest, ProgressBar>,
    building: Option<ProgressBar>,
}

/// Which way.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

impl Transfer {
    pub(crate) fn new(quiet: bool) -> Self {
        let bars = (!quiet && io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Transfer { bars, quiet, shown: Mutex::default() }
    }

    /// A line that is always shown, above the bars.
    pub(crate) fn say(&self, text: &str) {
        match &self.bars {
            _ if self.quiet => {}
            Some(bars) => _ = bars.println(text),
            None => _ = writeln!(io::stderr().lock(), "{text}"),
        }
    }

    /// Shows a step of a pull.
    pub(crate) fn pulled(&self, step: PullStep<'_>) {
        match step {
            PullStep::Waiting => self.say("Waiting for another pull of this image"),
            PullStep::Blob { digest, size, state } => self.blob(Way::In, digest, size, state, None),
            PullStep::Building(progress) => self.building(progress),
            _ => {}
        }
    }

    /// Shows a step of a push.
    pub(crate) fn pushed(&self, step: PushStep<'_>) {
        let PushStep::Blob { digest, size, state, how, .. } = step else { return };
        self.blob(Way::Out, digest, size, state, how);
    }

    fn blob(&self, way: Way, digest: &Digest, size: u64, state: BlobState<'_>, how: Option<Uploaded>) {
        if self.quiet {
            return;
        }
        let text = match (way, state, how) {
            (_, BlobState::Known, Some(Uploaded::Mounted)) => "Mounted from another repository".to_owned(),
            (_, BlobState::Known, _) => "Already exists".to_owned(),
            (_, BlobState::Waiting, _) => "Waiting for another pull of it".to_owned(),
            (_, BlobState::Again(why), _) => format!("Trying again: {why}"),
            (Way::In, BlobState::Bytes(0), _) => "Waiting".to_owned(),
            (Way::In, BlobState::Bytes(_), _) => "Downloading".to_owned(),
            (Way::Out, BlobState::Bytes(_), _) => "Preparing".to_owned(),
            (Way::In, BlobState::Done, _) => "Download complete".to_owned(),
            (Way::Out, BlobState::Done, _) => "Pushed".to_owned(),
            _ => return,
        };
        let Some(bars) = &self.bars else {
            if !matches!(state, BlobState::Bytes(_)) {
                self.say(&format!("{}: {text} ({})", digest.short(), human::size(size)));
            }
            return;
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = shown.blobs.entry(*digest).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(size));
            bar.set_prefix(digest.short());
            set_style(&bar, if matches!(way, Way::In) { BAR } else { WORDS });
            bar
        });
        bar.set_message(text);
        match state {
            BlobState::Bytes(bytes) => bar.set_position(bytes),
            BlobState::Known | BlobState::Done => {
                set_style(bar, WORDS);
                bar.abandon();
            }
            _ => {}
        }
    }

    fn building(&self, progress: Progress<'_>) {
        let Some(bars) = &self.bars else { return };
        let text = match progress {
            Progress::Checking { layer, number, of } => {
                format!("checking layer {number} of {of}, {}", layer.short())
            }
            Progress::Building { .. } => "writing the root file system".to_owned(),
            _ => return,
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = shown.building.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::no_length());
            set_style(&bar, "{wide_msg}");
            bar
        });
        bar.set_message(text);
        bar.tick();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let shown = self.shown.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &shown.building {
            bar.finish_and_clear();
        }
        for bar in shown.blobs.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
