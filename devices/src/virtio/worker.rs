//! The thread of one running virtio device.
//!
//! Spawned when the driver is ready, joined when it resets the device, when the VM pauses, and at the end. The
//! runner travels into the thread and comes back with the join, so nothing is shared while it runs.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::Error;
use super::runner::{Post, Runner, Turn};

/// Told of a host fault of a device, once per fault, on the device's thread. The VM stops with it.
pub type FaultSink = Arc<dyn Fn(Error) + Send + Sync>;

pub(super) struct Worker {
    post: Post,
    thread: JoinHandle<Box<Runner>>,
}

impl Worker {
    /// Runs `runner` on a thread of its own. Gives it back when no thread can be had.
    pub(super) fn spawn(runner: Box<Runner>, post: Post, faults: FaultSink) -> Result<Self, std::io::Error> {
        let name = format!("virtio-{}", runner.device().id());
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(256 * 1024)
            .spawn(move || run(runner, &faults))?;
        Ok(Self { post, thread })
    }

    pub(super) fn post(&self) -> &Post {
        &self.post
    }

    /// Stops the thread after the call that it is in. `None` when the device panicked.
    pub(super) fn join(self) -> Option<Box<Runner>> {
        self.post.send(|mailbox| mailbox.stop = true);
        self.thread.join().ok()
    }
}

/// Reports a panic of the device, so that the VM does not wait for it for ever.
struct PanicGuard<'a>(&'a FaultSink);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let source = std::io::Error::other("the device panicked");
            (self.0)(Error::Host { doing: "running a device", source });
        }
    }
}

fn run(mut runner: Box<Runner>, faults: &FaultSink) -> Box<Runner> {
    let _guard = PanicGuard(faults);
    loop {
        match runner.turn(None) {
            Ok(Turn::Stopped) => return runner,
            Ok(_) => {}
            Err(fault) => {
                faults(fault);
                return runner;
            }
        }
    }
}
