//! Sticky kicks for hypervisors whose own cancellation may be lost (WHP, Hypervisor.framework).
//!
//! Both can cancel a vCPU that runs; what becomes of a cancellation that arrives just before the vCPU enters is not
//! promised by one and promised by the other. Neither promise is needed here: a kick is a flag that the vCPU looks at
//! before it enters, and while the vCPU is in the hypervisor's own call and has not come back, the kicker cancels again.
//!
//! ```text
//! kick:  pending := true;  while pending and inside: cancel, wait for "left" (at most a millisecond)
//! run:   inside := true;  pending? then inside := false, return Kicked;  the hypervisor's call;  inside := false, "left"
//! ```
//! The kicker thus waits for the hypervisor to give the vCPU back, never for the guest or for the monitor's own code.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Kick;

/// After this long a cancellation is taken for lost.
const LOST: Duration = Duration::from_millis(1);

/// Ends the run of a vCPU that is inside the hypervisor, as the hypervisor does it.
type Cancel = Box<dyn Fn() + Send + Sync>;

/// The kicks of one vCPU.
#[derive(Default)]
pub(super) struct Kicks {
    pending: AtomicBool,
    inside: AtomicBool,
    /// Locked around every cancellation, so that the vCPU cannot be gone.
    cancel: Mutex<Option<Cancel>>,
    left: Condvar,
}

impl Kicks {
    /// From now on `cancel` brings the vCPU back.
    pub(super) fn bind(&self, cancel: impl Fn() + Send + Sync + 'static) {
        *self.lock() = Some(Box::new(cancel));
    }

    /// The vCPU is about to go: nobody cancels it any more.
    pub(super) fn unbind(&self) {
        *self.lock() = None;
    }

    /// Takes the kick away; true when there was one.
    pub(super) fn take(&self) -> bool {
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::AcqRel)
    }

    /// Whether there is one.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Calls `enter`, which a kick ends; `None`: there is a kick already, and nothing was called.
    pub(super) fn enter<T>(&self, enter: impl FnOnce() -> T) -> Option<T> {
        // Either this side sees the flag, or the kicker sees the vCPU inside.
        self.inside.store(true, Ordering::SeqCst);
        let result = if self.pending.load(Ordering::SeqCst) { None } else { Some(enter()) };
        self.inside.store(false, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            drop(self.lock());
            self.left.notify_all();
        }
        result
    }

    /// A kick that is not waited for: the cancellation is sent once. For a hypervisor that keeps one that comes early, and
    /// where a late one does no harm.
    pub(super) fn nudge(&self) {
        if !self.pending.swap(true, Ordering::SeqCst)
            && self.inside.load(Ordering::SeqCst)
            && let Some(cancel) = self.lock().as_ref()
        {
            cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Cancel>> {
        self.cancel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for Kicks {
    fn kick(&self) {
        if self.pending.swap(true, Ordering::SeqCst) {
            // Another kicker is at it.
            return;
        }
        let mut cancel = self.lock();
        while self.pending.load(Ordering::SeqCst) && self.inside.load(Ordering::SeqCst) {
            let Some(call) = cancel.as_ref() else { return };
            call();
            if !self.inside.load(Ordering::SeqCst) {
                return;
            }
            cancel = self.left.wait_timeout(cancel, LOST).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// A hypervisor's vCPU: its call returns when it is cancelled. A cancellation that comes while nobody is inside is
    /// kept or lost, as the host has it; the first `deaf` ones are lost in any case.
    #[derive(Default)]
    struct Host {
        state: Mutex<(bool, bool)>, // (inside, cancelled)
        changed: Condvar,
        keeps: bool,
        deaf: AtomicUsize,
        cancellations: AtomicUsize,
    }

    impl Host {
        fn run(&self) {
            let mut state = self.state.lock().unwrap();
            state.0 = true;
            let mut state = self.changed.wait_while(state, |(_, cancelled)| !*cancelled).unwrap();
            *state = (false, false);
        }

        fn cancel(&self) {
            self.cancellations.fetch_add(1, Ordering::Relaxed);
            let deaf = self.deaf.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            let mut state = self.state.lock().unwrap();
            if deaf.is_err() && (state.0 || self.keeps) {
                state.1 = true;
                self.changed.notify_all();
            }
        }
    }

    fn rig(keeps: bool, deaf: usize) -> (Arc<Host>, Arc<Kicks>) {
        let host = Arc::new(Host { keeps, deaf: AtomicUsize::new(deaf), ..Host::default() });
        let kicks = Arc::new(Kicks::default());
        let other = Arc::clone(&host);
        kicks.bind(move || other.cancel());
        (host, kicks)
    }

    /// What a backend's `run` does, for a guest that never stops by itself.
    fn run(host: &Host, kicks: &Kicks) {
        loop {
            if kicks.take() {
                return;
            }
            kicks.enter(|| host.run());
        }
    }

    #[test]
    fn kicks_are_never_lost_whether_the_host_keeps_a_cancellation_or_not() {
        for keeps in [false, true] {
            let (host, kicks) = rig(keeps, 0);
            let (go, start) = std::sync::mpsc::channel();
            let kicker = Arc::clone(&kicks);
            let thread = thread::spawn(move || {
                for turn in start {
                    for _ in 0..turn % 97 {
                        std::hint::spin_loop();
                    }
                    kicker.kick();
                }
            });
            for turn in 0..2000 {
                go.send(turn).unwrap();
                run(&host, &kicks);
            }
            drop(go);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_cancellation_that_the_host_loses_is_sent_again() {
        let (host, kicks) = rig(false, 5);
        let kicker = Arc::clone(&kicks);
        let thread = thread::spawn(move || kicker.kick());
        run(&host, &kicks);
        thread.join().unwrap();
        assert!(!kicks.take());
    }

    #[test]
    fn several_kicks_before_a_run_count_as_one_and_cancel_nobody() {
        let (host, kicks) = rig(false, 0);
        for _ in 0..3 {
            kicks.kick();
        }
        run(&host, &kicks);
        assert!(!kicks.take());
        assert_eq!(host.cancellations.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_kick_of_a_vcpu_that_is_gone_does_nothing() {
        let (host, kicks) = rig(false, 0);
        kicks.unbind();
        kicks.kick();
        assert_eq!(host.cancellations.load(Ordering::Relaxed), 0);
    }
}
