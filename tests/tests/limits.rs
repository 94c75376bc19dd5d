//! What a container may use and do, and what is told of it while it runs. One machine serves a whole test, because a start
//! is what costs here.

use std::time::{Duration, Instant};

use servin_tests::machine::{Outcome, Servin};

const BASE: &str = "servin/base";

/// Asks again until the answer holds this, or the time is over.
#[track_caller]
fn until(servin: &Servin, args: &[&str], text: &str) -> Outcome {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let outcome = servin.go(args);
        if outcome.text().contains(text) {
            return outcome;
        }
        assert!(Instant::now() < until, "{text:?} is not in {outcome:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn limits_and_privileges_hold_in_the_guest() {
    let Some(servin) = Servin::new() else { return };
    let script = "cat /proc/1/comm; ulimit -n; grep -E 'CapEff|NoNewPrivs' /proc/self/status; id -G; \
        cat /proc/self/oom_score_adj /proc/sys/kernel/msgmax /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; \
        tail -n1 /etc/hosts; hostname -f 2>/dev/null; df -k /dev/shm | tail -n1 | tr -s ' ' | cut -d' ' -f2";
    servin
        .go(&[
            "run",
            "--rm",
            "--init",
            "--ulimit",
            "nofile=77",
            "--cap-drop",
            "all",
            "--cap-add",
            "chown",
            "--security-opt",
            "no-new-privileges",
            "--group-add",
            "4711",
            "--oom-score-adj",
            "5",
            "--sysctl",
            "kernel.msgmax=4242",
            "--pids-limit",
            "50",
            "--cpus",
            "0.5",
            "--add-host",
            "db:10.1.1.1",
            "-h",
            "box",
            "--domainname",
            "example.org",
            "--shm-size",
            "1m",
            BASE,
            "sh",
            "-c",
            script,
        ])
        .expect(
            0,
            "servin-init\n77\nCapEff:\t0000000000000001\nNoNewPrivs:\t1\n0 1 2 3 4 6 10 4711\n5\n4242\n50\n50000 100000\n\
             10.1.1.1\tdb\nbox.example.org\n1024\n",
        );
}

#[test]
fn too_much_memory_is_137_and_the_record_says_why() {
    let Some(servin) = Servin::new() else { return };
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    let outcome = servin.go(&["run", "-m", "32m", "--name", "fat", BASE, "sh", "-c", script]);
    assert_eq!(outcome.code, Some(137), "{outcome:?}");
    servin.go(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "fat"]).expect(0, "true 137\n");
}

#[test]
fn a_running_container_is_watched_paused_changed_and_checked() {
    let Some(servin) = Servin::new() else { return };
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "--label",
        "a=b",
        "--health-cmd",
        "test -e /tmp/well",
        "--health-interval",
        "100ms",
        "--health-retries",
        "1",
        BASE,
        "sh",
        "-c",
        "echo one; while :; do sleep 0.2; done",
    ];
    assert_eq!(servin.go(&run).code, Some(0));
    until(&servin, &["ps"], "(unhealthy)");
    servin.go(&["exec", "web", "touch", "/tmp/well"]).expect(0, "");
    until(&servin, &["ps", "--filter", "health=healthy"], "(healthy)");
    servin
        .go(&["inspect", "-f", "{{.State.Health.Status}} {{.State.Health.FailingStreak}}", "web"])
        .expect(0, "healthy 0\n");

    let top = servin.go(&["top", "web", "-o", "pid,user,args"]).text();
    assert!(top.starts_with("PID") && top.contains("1     root   sh -c echo one"), "{top}");
    let stats = servin
        .go(&["stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.PIDs}}"])
        .text();
    assert!(stats.starts_with("web ") && stats.contains("/ 512MiB") && !stats.contains("--"), "{stats}");

    servin.go(&["update", "-m", "128m", "--pids-limit", "40", "web"]).expect(0, "web\n");
    servin
        .go(&["exec", "web", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"])
        .expect(0, "134217728\n40\n");
    servin.go(&["update", "--cpu-quota", "10000", "--cpu-period", "30000", "web"]).expect(0, "web\n");
    servin.go(&["update", "--cpu-quota", "15000", "web"]).expect(0, "web\n");
    servin.go(&["exec", "web", "cat", "/sys/fs/cgroup/cpu.max"]).expect(0, "15000 30000\n");
    let asked = "{{.HostConfig.CpuQuota}} {{.HostConfig.CpuPeriod}} {{.HostConfig.NanoCpus}}";
    servin.go(&["inspect", "-f", asked, "web"]).expect(0, "15000 30000 500000000\n");
    let refused = servin.go(&["update", "-m", "4g", "web"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("do not fit"), "{refused:?}");

    servin.go(&["pause", "web"]).expect(0, "web\n");
    servin
        .go(&["ps", "--filter", "status=paused", "--format", "{{.State}} {{.Names}}"])
        .expect(0, "paused web\n");
    let refused = servin.go(&["exec", "web", "true"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("is paused"), "{refused:?}");
    servin.go(&["unpause", "web"]).expect(0, "web\n");
    servin.go(&["exec", "web", "echo", "back"]).expect(0, "back\n");
    servin.go(&["pause", "web"]).expect(0, "web\n");
    servin.go(&["stop", "-t", "1", "web"]).expect(0, "web\n");
    servin.go(&["inspect", "-f", "{{.State.Status}} {{.State.Paused}}", "web"]).expect(0, "exited false\n");

    let actions = servin.go(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]).text();
    let actions: String = actions
        .lines()
        .filter(|action| !action.starts_with("exec_"))
        .map(|action| format!("{action}\n"))
        .collect();
    for action in [
        "create\nstart\nhealth_status: unhealthy\nhealth_status: healthy\nupdate\nupdate\nupdate\npause\nunpause\npause\n",
        "die\n",
    ] {
        assert!(actions.contains(action), "{actions}");
    }
    servin.go(&["logs", "--since", "1h", "--until", "0s", "web"]).expect(0, "one\n");
    servin.go(&["logs", "--until", "1h", "web"]).expect(0, "");
    servin.go(&["system", "check"]).expect(0, "The store is whole.\n");
    servin
        .go(&["container", "prune", "-f", "--filter", "label=a=c"])
        .expect(0, "Total reclaimed space: 0B\n");
    let pruned = servin.go(&["container", "prune", "-f"]).text();
    assert!(pruned.starts_with("Deleted Containers:\n"), "{pruned}");
    servin.go(&["ps", "-aq"]).expect(0, "");
}
