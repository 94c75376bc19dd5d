//! `servin update`.

use servin_engine::container::{Cpus, PERIOD_US, Request, Restart, Update, is_living};
use servin_engine::events::Events;
use servin_engine::monitor::{change, wire::Ask};

use super::containers::{config, done, each, open};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::spec::{self, limits, restart};

/// Changes each container's limits and restart policy, of one that runs in its machine as well, and prints its name.
pub(crate) fn run(global: &Global, flags: &[(&'static str, String)], names: &[String]) -> Result<u8> {
    let (update, time) = read(flags)?;
    let store = open(global)?;
    each(names, |name| {
        let mut record = store.containers().find(name)?;
        let mut request = config(&record)?.request;
        let mut update = update.clone();
        time.add_to(&mut update, &request)?;
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

/// What the flags say.
fn read(flags: &[(&'static str, String)]) -> Result<(Update, Time)> {
    if flags.is_empty() {
        return Err(Error::Usage { what: "nothing to change was given".into(), verb: "update".into() });
    }
    let mut update = Update::default();
    let mut time = Time::default();
    for (flag, text) in flags {
        let fail = |why: String| Error::Value { flag, value: text.clone(), why, code: 1 };
        match *flag {
            "--memory" => update.memory = Some(spec::memory(text).map_err(|error| error.with_code(1))?),
            "--cpus" => update.cpus = Some(spec::cpus(text).map_err(|error| error.with_code(1))?),
            "--cpu-quota" => time.quota = Some(limits::quota(text).map_err(fail)?.unwrap_or(0)),
            "--cpu-period" => time.period = Some(limits::period(text).map_err(fail)?),
            "--pids-limit" => update.pids = Some(limits::pids(text).map_err(fail)?.unwrap_or(u64::MAX)),
            "--memory-reservation" => {
                update.memory_reservation = Some(limits::reservation(text).map_err(fail)?);
            }
            "--restart" => update.restart = Some(restart::policy(text).map_err(fail)?),
            "--memory-swap" => update.memory_swap = Some(limits::swap(text).map_err(fail)?),
            _ => update.cpu_shares = Some(limits::shares(text).map_err(fail)?),
        }
    }
    if update.cpus.is_some() {
        if time.quota.is_some_and(|quota| quota > 0) || time.period.is_some() {
            return Err(Error::Usage { what: limits::TWICE.into(), verb: "update".into() });
        }
        time = Time::default();
    }
    Ok((update, time))
}

/// Processor time in two numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Time {
    /// Microseconds; 0 for none.
    quota: Option<u64>,
    /// Microseconds.
    period: Option<u32>,
}

impl Time {
    /// What is not said stays as the container has it.
    fn add_to(self, update: &mut Update, request: &Request) -> Result<()> {
        if self.quota.is_none() && self.period.is_none() {
            return Ok(());
        }
        let fail = |flag: &'static str, value: String, why| Error::Value { flag, value, why, code: 1 };
        let quota = self.quota.or(request.limits.cpu_quota).filter(|quota| *quota > 0);
        let period = self.period.or(request.limits.cpu_period);
        let cpus = match quota {
            Some(quota) => {
                limits::time(quota, period).map_err(|why| fail("--cpu-quota", quota.to_string(), why))?
            }
            None if self.quota.is_some() => Cpus { nano: u64::from(request.cpus.count()) * Cpus::ONE.nano },
            None => request.cpus,
        };
        // Less than that the guest's kernel does not divide.
        if cpus.quota_us(period.unwrap_or(PERIOD_US)).is_some_and(|quota| quota < 1000) {
            let why = "the container's part of it would be less than 1000 microseconds".to_owned();
            return Err(fail("--cpu-period", period.unwrap_or(PERIOD_US).to_string(), why));
        }
        (update.cpus, update.cpu_quota, update.cpu_period) = (Some(cpus), quota, period);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use servin_engine::container::RootSource;

    use super::*;

    /// What the container has after it: billionths of a processor, quota and period.
    fn after(
        request: &mut Request,
        quota: Option<u64>,
        period: Option<u32>,
    ) -> (u64, Option<u64>, Option<u32>) {
        let mut update = Update::default();
        Time { quota, period }.add_to(&mut update, request).unwrap();
        update.apply(request);
        (request.cpus.nano, request.limits.cpu_quota, request.limits.cpu_period)
    }

    #[test]
    fn processor_time_is_said_in_one_number_or_in_two() {
        let read = |flags: &[(&'static str, &str)]| {
            read(&flags.iter().map(|(flag, text)| (*flag, (*text).to_owned())).collect::<Vec<_>>())
        };
        for flag in [("--cpu-quota", "50000"), ("--cpu-period", "50000")] {
            let error = read(&[("--cpus", "1"), flag]).unwrap_err().to_string();
            assert!(error.contains("leave one of them out"), "{error}");
        }
        let (update, time) = read(&[("--cpus", "2"), ("--cpu-quota", "-1")]).unwrap();
        assert_eq!((update.cpus, time.quota), (Some(Cpus { nano: 2_000_000_000 }), None));
        let (update, time) = read(&[("--cpu-quota", "50000"), ("--cpu-period", "20000")]).unwrap();
        assert_eq!((update.cpus, time.quota, time.period), (None, Some(50_000), Some(20_000)));
        assert!(read(&[("--cpu-period", "5")]).unwrap_err().to_string().contains("--cpu-period"));
    }

    #[test]
    fn quota_and_period_stay_where_the_other_one_is_said() {
        let mut request = Request::new(RootSource::Directory("/r".into()));
        assert_eq!(after(&mut request, Some(50_000), None), (500_000_000, Some(50_000), None));
        assert_eq!(after(&mut request, None, Some(200_000)), (250_000_000, Some(50_000), Some(200_000)));
        assert_eq!(after(&mut request, Some(100_000), None), (500_000_000, Some(100_000), Some(200_000)));
        assert_eq!(after(&mut request, None, None), (500_000_000, Some(100_000), Some(200_000)));
        assert_eq!(after(&mut request, Some(0), None), (1_000_000_000, None, Some(200_000)));
        // Where nothing is divided, the period alone changes nothing.
        assert_eq!(after(&mut request, None, Some(20_000)), (1_000_000_000, None, Some(20_000)));
    }

    #[test]
    fn a_part_that_the_guests_kernel_cannot_give_is_refused() {
        let mut request = Request::new(RootSource::Directory("/r".into()));
        request.cpus = Cpus { nano: 500_000_000 };
        let refused = |request: &Request, quota, period| {
            let error = Time { quota, period }.add_to(&mut Update::default(), request).unwrap_err();
            error.to_string()
        };
        assert!(refused(&request, None, Some(1000)).contains("--cpu-period"));
        assert!(refused(&request, Some(999), None).contains("1000 to 800000"));
        request.limits.cpu_quota = Some(50_000);
        assert!(refused(&request, None, Some(1000)).contains("1000 to 8000"));
    }
}
