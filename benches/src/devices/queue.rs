//! A queue with a device that does next to nothing: entropy, a few bytes at a time.

use std::time::Duration;

use servin_devices::testing::Rig;
use servin_devices::virtio::rng::Rng;

use super::{Rate, rate};

/// Chains in a second, one at a time and eight at a time, inline and on the device's own thread.
pub fn queue(time: Duration) -> Vec<Rate> {
    let inline = || Rig::started(Box::new(Rng::new()));
    let threaded = || {
        let mut rig = Rig::threaded(Box::new(Rng::new()));
        rig.init(u64::MAX);
        rig
    };
    vec![
        one("queue: a chain inline", inline(), time),
        batch("queue: a chain of 8 at once, inline", inline(), time),
        one("queue: a chain through the worker's thread", threaded(), time),
        batch("queue: a chain of 8 at once, through the thread", threaded(), time),
    ]
}

fn one(what: &str, mut rig: Rig, time: Duration) -> Rate {
    rate(what, 0, time, || {
        rig.ask(0, &[], &[8]);
        1
    })
}

fn batch(what: &str, mut rig: Rig, time: Duration) -> Rate {
    rate(what, 0, time, || {
        for _ in 0..8 {
            let addr = rig.buffer(8);
            rig.add_raw(0, &[(addr, 8, true)]);
        }
        rig.notify(0);
        for _ in 0..8 {
            rig.wait_used(0);
        }
        8
    })
}
