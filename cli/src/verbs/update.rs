//! `servin update`.

use servin_engine::container::{Restart, Update, is_living};
use servin_engine::events::Events;
use servin_engine::monitor::{change, wire::Ask};

use super::containers::{config, done, each, open};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::spec::{self, limits, restart};

/// Changes each container's limits and restart policy, of one that runs in its machine as well, and prints its name.
pub(crate) fn run(global: &Global, flags: &[(&'static str, String)], names: &[String]) -> Result<u8> {
    if flags.is_empty() {
        return Err(Error::Usage { what: "nothing to change was given".into(), verb: "update".into() });
    }
    let mut update = Update::default();
    for (flag, text) in flags {
        let fail = |why: String| Error::Value { flag, value: text.clone(), why, code: 1 };
        match *flag {
            "--memory" => update.memory = Some(spec::memory(text).map_err(|error| error.with_code(1))?),
            "--cpus" => update.cpus = Some(spec::cpus(text).map_err(|error| error.with_code(1))?),
            "--pids-limit" => update.pids = Some(limits::pids(text).map_err(fail)?.unwrap_or(u64::MAX)),
            "--memory-reservation" => {
                update.memory_reservation = Some(limits::reservation(text).map_err(fail)?);
            }
            "--restart" => update.restart = Some(restart::policy(text).map_err(fail)?),
            "--memory-swap" => update.memory_swap = Some(limits::swap(text).map_err(fail)?),
            _ => update.cpu_shares = Some(limits::shares(text).map_err(fail)?),
        }
    }
    let store = open(global)?;
    each(names, |name| {
        let mut record = store.containers().find(name)?;
        let mut request = config(&record)?.request;
        update.apply(&mut request);
        if request.remove && request.restart != Restart::No {
            let what = format!(
                "container {name} goes when its program ends (--rm), so that nothing can start it again"
            );
            return Err(Error::Usage { what, verb: "update".into() });
        }
        let memory = request.memory;
        if request.limits.memory_reservation.is_some_and(|least| least > memory) {
            let what = format!("the memory reservation of container {name} would be above its memory limit");
            return Err(Error::Usage { what, verb: "update".into() });
        }
        if is_living(&store, &record.id) {
            done(&store, &record, &Ask::Update(Box::new(update.clone())))?;
        } else {
            change(&mut record, &update)?;
            store.containers().update(&record)?;
            Events::new(store.root()).container("update", &record, &[]);
        }
        Ok(name.to_owned())
    })
}
