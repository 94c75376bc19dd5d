//! What servin says of the host and takes from it: processors, memory, many starts at once, and how fast they were.

use std::fs;

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";

#[test]
fn eight_processors_all_run_programs() {
    let Some(servin) = Servin::new() else { return };
    let script = "nproc; for cpu in 0 1 2 3 4 5 6 7; do taskset -c $cpu sh -c 'echo $(cut -d\" \" -f39 /proc/self/stat)' & done; wait";
    let outcome = servin.go(&["run", "--cpus", "8", BASE, "sh", "-c", script]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.remove(0), "8", "{outcome:?}");
    lines.sort_unstable();
    assert_eq!(lines, ["0", "1", "2", "3", "4", "5", "6", "7"], "{outcome:?}");
}

#[test]
fn memory_on_both_sides_of_the_hole_below_4_gib_is_used() {
    let Some(servin) = Servin::new() else { return };
    // RAM as the kernel was told of it, and how much of it lies at 4 GiB and above; 40 MiB are written there, for the kernel
    // takes the highest zone first.
    let script = "grep 'System RAM' /proc/iomem; head -c 41943040 /dev/urandom > /dev/shm/a; \
                  cp /dev/shm/a /dev/shm/b; cmp /dev/shm/a /dev/shm/b && grep -A9 'zone *Normal' /proc/zoneinfo";
    let outcome =
        servin.go(&["run", "--privileged", "-m", "5g", "--shm-size", "100m", BASE, "sh", "-c", script]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    let number = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
    let ranges: Vec<(u64, u64)> = text
        .lines()
        .filter_map(|line| line.strip_suffix(" : System RAM"))
        .filter_map(|range| range.split_once('-'))
        .map(|(first, last)| (number(first), number(last)))
        .collect();
    let gib = |gib: u64| gib << 30;
    assert!(ranges.iter().any(|&(_, last)| last < gib(4)), "{text}");
    assert!(ranges.iter().any(|&(first, last)| first == gib(4) && last > gib(5)), "{text}");
    assert!(!ranges.iter().any(|&(first, last)| first < gib(4) && last >= gib(4)), "{text}");
    // Pages of the zone above 4 GiB, and what is free of them.
    let row = |name: &str| {
        let words = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        words.trim().parse::<u64>().ok()
    };
    let (managed, free) = (row("managed").unwrap(), row("pages free").unwrap());
    assert!(managed - free > (60 << 20) / 4096, "{text}");
}

#[test]
fn many_starts_at_once_all_come_to_their_end() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", BASE, "true"]).expect(0, "");
    let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    let running: Vec<_> = names
        .iter()
        .map(|name| servin.start(&["run", "--name", name, "-m", "64m", BASE, "sh", "-c", "echo $(hostname)"]))
        .collect();
    let mut hosts = Vec::new();
    for (name, running) in names.iter().zip(running) {
        let outcome = running.finish();
        assert_eq!(outcome.code, Some(0), "{name}: {outcome:?}");
        hosts.push(outcome.text());
    }
    hosts.sort_unstable();
    hosts.dedup();
    assert_eq!(hosts.len(), names.len(), "two have one name: {hosts:?}");
    let listed = servin.go(&["ps", "-a", "--filter", "status=exited", "--format", "{{.Names}}"]);
    let mut listed: Vec<String> = listed.text().lines().map(str::to_owned).collect();
    listed.retain(|name| names.contains(name));
    listed.sort_unstable();
    assert_eq!(listed, names);
}

#[test]
fn the_benchmark_is_a_gate_and_draws_what_it_measured() {
    let Some(servin) = Servin::new() else { return };
    let picture = servin.folder().join("boot.svg");
    let picture = picture.to_str().unwrap();
    let bench = |budget: &str| {
        let measure = ["bench", "boot", "-n", "2", "--machines", "1", "--json", "--svg", picture];
        servin.go(&[&measure[..], &["--budget", budget]].concat())
    };
    let good = bench("600s");
    assert_eq!(good.code, Some(0), "{good:?}");
    let json: serde_json::Value = serde_json::from_str(&good.text()).unwrap();
    let series = json["series"].as_array().unwrap();
    let starts: Vec<_> = series.iter().map(|one| one["start"].as_str().unwrap()).collect();
    assert_eq!(starts, ["cold", "warm"], "{json}");
    for one in series {
        let clocks = one["clocks"].as_array().unwrap();
        let middles: Vec<f64> = clocks.iter().map(|clock| clock[1]["p50"].as_f64().unwrap()).collect();
        assert_eq!(clocks.len(), 5, "{json}");
        assert!(middles[0] > 0.0 && middles.is_sorted(), "{json}");
    }
    assert!(fs::read_to_string(picture).unwrap().starts_with("<svg"), "no picture");
    let late = bench("1us");
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("budget"), "{late:?}");
    assert_eq!(servin.go(&["ps", "-aq"]).text(), "", "the benchmark left containers");
}

#[test]
fn doctor_says_what_the_host_offers_and_what_is_missing() {
    let Some(servin) = Servin::on_any_host() else { return };
    let good = servin.go(&["doctor"]);
    assert_eq!(good.code, Some(0), "{good:?}");
    for row in ["hypervisor", "kind", "abilities", "guest", "data root"] {
        let row = format!("ok    {row}");
        assert!(good.text().lines().any(|line| line.starts_with(&row)), "{row}: {good:?}");
    }
    assert!(good.text().ends_with("Containers can run here.\n"), "{good:?}");
    let mut command = servin.command(["doctor"]);
    command.env("SERVIN_GUEST_DIR", servin.folder());
    let bad = servin.spawn(command).finish();
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.text().lines().any(|line| line.starts_with("FAIL  guest")), "{bad:?}");
    assert!(!bad.text().contains("Containers can run here"), "{bad:?}");
}

#[test]
fn a_slow_start_says_so_and_a_fast_one_does_not() {
    let Some(servin) = Servin::on_any_host() else { return };
    let said = |outcome: &servin_tests::machine::Outcome| outcome.stderr.contains("takes many seconds");
    let cold = servin.go(&["run", BASE, "true"]);
    assert_eq!(cold.code, Some(0), "{cold:?}");
    assert_eq!(said(&cold), servin_tests::machine::slow(), "{cold:?}");
    let warm = servin.go(&["run", BASE, "true"]);
    warm.expect(0, "");
    assert!(!said(&warm), "{warm:?}");
}

#[test]
fn what_the_disk_holds_is_counted() {
    let Some(servin) = Servin::new() else { return };
    servin
        .go(&[
            "run",
            "--name",
            "box",
            "-v",
            "data:/data",
            BASE,
            "sh",
            "-c",
            "head -c 3000000 /dev/urandom > /x",
        ])
        .expect(0, "");
    let rows = servin.go(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}}"]);
    assert_eq!(rows.code, Some(0), "{rows:?}");
    let text = rows.text();
    let row = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    assert!(row("Images").starts_with("1 1 "), "{text}");
    assert!(row("Containers").starts_with("1 0 "), "{text}");
    assert!(row("Containers").ends_with("MB"), "{text}");
    assert!(row("Local Volumes").starts_with("1 1 "), "{text}");
    let info = servin.go(&["info", "--format", "{{.Containers}} {{.Images}}"]);
    info.expect(0, "1 1\n");
    servin.go(&["rm", "-v", "box"]).expect(0, "box\n");
    let pruned = servin.go(&["system", "prune", "-af", "--volumes"]);
    assert_eq!(pruned.code, Some(0), "{pruned:?}");
    servin.go(&["info", "--format", "{{.Containers}} {{.Images}}"]).expect(0, "0 0\n");
}

/// What other files hold the fast hosts to in detail, on any host and with one boot: every start after the first is warm.
#[test]
fn one_boot_serves_the_habits_of_a_user() {
    let Some(servin) = Servin::on_any_host() else { return };
    servin.go(&["run", BASE, "echo", "hi"]).expect(0, "hi\n");
    let apart = servin.go(&["run", "--rm", BASE, "sh", "-c", "echo out; echo err >&2; exit 255"]);
    apart.expect(255, "out\n");
    assert_eq!(apart.stderr, "err\n");
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let outcome = servin.go(&["run", "--rm", BASE, program]);
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(outcome.stderr.contains(program), "{outcome:?}");
    }
    let input: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let echoed = servin.go_with_input(&["run", "--rm", "-i", BASE, "cat"], &input);
    assert_eq!((echoed.code, echoed.stdout == input), (Some(0), true));
    let set = ["run", "--rm", "-e", "WHAT=set", "-w", "/tmp", "-u", "12:34", "-h", "elsewhere", BASE];
    let said =
        servin.go(&[&set[..], &["sh", "-c", "echo $WHAT $(pwd) $(id -u):$(id -g) $(hostname)"]].concat());
    said.expect(0, "set /tmp 12:34 elsewhere\n");

    servin.go(&[
        "run",
        "-d",
        "--name",
        "box",
        BASE,
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done",
    ]);
    let mut logs = servin.start(&["logs", "-f", "box"]);
    logs.wait_for("up");
    servin.go(&["exec", "box", "sh", "-c", "exit 3"]).expect(3, "");
    servin.go(&["stop", "-t", "60", "box"]).expect(0, "box\n");
    servin.go(&["wait", "box"]).expect(0, "9\n");
    assert_eq!(logs.finish().code, Some(0));
    servin.go(&["run", "-d", "--name", "gone", BASE, "sleep", "1000"]);
    servin.go(&["kill", "gone"]).expect(0, "gone\n");
    servin.go(&["wait", "gone"]).expect(0, "137\n");
    servin.go(&["rm", "box", "gone"]).expect(0, "box\ngone\n");
}
