//! What a user of `servin` sees: the behaviours of the command line, on a real hypervisor.
//!
//! The same file runs on the machine's own `/dev/kvm` and in the nested host.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";

// ---- without a machine ------------------------------------------------------------------------------------------

#[test]
fn version_is_a_name_and_three_numbers() {
    let outcome = Servin::without_machine().go(&["--version"]);
    let text = outcome.text();
    let numbers = text.strip_prefix("Servin ").and_then(|rest| rest.strip_suffix('\n')).unwrap_or_default();
    assert_eq!(numbers.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{outcome:?}");
    assert_eq!(outcome.code, Some(0));
}

#[test]
fn help_goes_to_standard_output_and_succeeds() {
    let outcome = Servin::without_machine().go(&["run", "--help"]);
    assert_eq!(outcome.code, Some(0));
    assert!(outcome.text().contains("--entrypoint"), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn a_flag_that_is_not_built_is_refused_by_name_before_anything_happens() {
    let servin = Servin::without_machine();
    let outcome = servin.go(&["run", "--gpus", "all", BASE, "true"]);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("--gpus"), "{outcome:?}");
    assert_eq!(outcome.text(), "");
    assert!(!servin.data_root().exists(), "the data root was made");
}

#[test]
fn an_unknown_flag_is_an_error_of_servin() {
    let outcome = Servin::without_machine().go(&["run", "--no-such-flag", BASE]);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("--no-such-flag"), "{outcome:?}");
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let Some(servin) = Servin::on_any_host() else { return };
    let outcome = servin.go(&["run", "no-such-image", "true"]);
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("no-such-image"), "{outcome:?}");
}

// ---- output and exit codes --------------------------------------------------------------------------------------

#[test]
fn run_prints_the_program_s_bytes_and_nothing_else() {
    let Some(servin) = Servin::on_any_host() else { return };
    let outcome = servin.go(&["run", BASE, "echo", "hi"]);
    outcome.expect(0, "hi\n");
}

#[test]
fn a_silent_run_prints_nothing_on_either_stream() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "true"]);
    outcome.expect(0, "");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn standard_error_is_kept_apart() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "sh", "-c", "echo out; echo err >&2"]);
    outcome.expect(0, "out\n");
    assert_eq!(outcome.stderr, "err\n");
}

#[test]
fn the_exit_code_is_the_program_s() {
    let Some(servin) = Servin::on_any_host() else { return };
    servin.go(&["run", BASE, "sh", "-c", "exit 42"]).expect(42, "");
}

#[test]
fn a_program_s_own_125_stays_a_125_and_255_a_255() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "sh", "-c", "exit 125"]);
    outcome.expect(125, "");
    assert_eq!(outcome.stderr, "", "servin claims the program's code as its own failure");
    servin.go(&["run", BASE, "sh", "-c", "exit 255"]).expect(255, "");
}

#[test]
fn a_program_out_of_memory_is_killed_and_gives_137() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "-m", "96m", BASE, "tail", "/dev/zero"]).expect(137, "");
}

#[test]
fn a_program_that_is_not_found_gives_127() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "no-such-program"]);
    assert_eq!(outcome.code, Some(127), "{outcome:?}");
    assert!(outcome.stderr.contains("no-such-program"), "{outcome:?}");
}

#[test]
fn a_program_that_cannot_be_executed_gives_126() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "/etc/passwd"]);
    assert_eq!(outcome.code, Some(126), "{outcome:?}");
}

#[test]
fn a_megabyte_of_output_arrives_whole() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(outcome.stdout.len(), 1 << 20);
    assert!(outcome.stdout.iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_reader_that_leaves_ends_the_program() {
    let Some(servin) = Servin::new() else { return };
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = servin.command(["run", BASE, "yes"]);
    command.stdout(writer);
    let running = servin.spawn(command);
    let mut start = [0; 4];
    reader.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"y\ny\n");
    drop(reader);
    let outcome = running.finish();
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
}

// ---- arguments --------------------------------------------------------------------------------------------------

#[test]
fn arguments_stop_at_the_image_and_arrive_byte_for_byte() {
    let Some(servin) = Servin::new() else { return };
    let words = [
        "run",
        BASE,
        "sh",
        "-c",
        r#"printf '%s|' "$0" "$@""#,
        "a b",
        "",
        "-e",
        "--rm",
        "it's \"$HOME\"",
        "\u{e9}\n",
    ];
    servin.go(&words).expect(0, "a b||-e|--rm|it's \"$HOME\"|\u{e9}\n|");
}

#[test]
fn variables_are_set_passed_on_and_read_from_files() {
    let Some(mut servin) = Servin::new() else { return };
    servin.env.push(("PASSED".into(), "from here".into()));
    servin.env.push(("SECRET".into(), "of the host".into()));
    let file = servin.folder().join("vars");
    fs::write(&file, "# a comment\nFROM_FILE=a file\n\n").unwrap();
    let words = [
        "run",
        "-e",
        "SET=a=b",
        "-e",
        "PASSED",
        "-e",
        "ABSENT",
        "--env-file",
        file.to_str().unwrap(),
        BASE,
        "sh",
        "-c",
        "echo $SET,$PASSED,${ABSENT-none},$FROM_FILE,${SECRET-none}",
    ];
    servin.go(&words).expect(0, "a=b,from here,none,a file,none\n");
}

#[test]
fn the_environment_holds_what_a_program_expects_and_nothing_of_the_host() {
    let Some(mut servin) = Servin::new() else { return };
    servin.env.push(("LEAK".into(), "1".into()));
    let outcome = servin.go(&["run", "-h", "box", BASE, "env"]);
    let text = outcome.text();
    let mut names: Vec<_> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    for needed in ["HOME", "HOSTNAME", "PATH"] {
        assert!(names.contains(&needed), "{needed} is missing: {names:?}");
    }
    assert!(text.contains("HOSTNAME=box\n"), "{text}");
    for leak in ["LEAK", "SERVIN_DATA_ROOT", "SERVIN_GUEST_DIR"] {
        assert!(!names.contains(&leak), "{leak} leaks: {names:?}");
    }
}

#[test]
fn the_working_directory_is_made_and_entered() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "-w", "/a/new/place", BASE, "pwd"]).expect(0, "/a/new/place\n");
}

#[test]
fn a_user_is_taken_by_number_and_by_name() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "-u", "1234:2345", BASE, "sh", "-c", "id -u; id -g"]).expect(0, "1234\n2345\n");
    servin.go(&["run", "-u", "nobody", BASE, "id", "-un"]).expect(0, "nobody\n");
}

#[test]
fn the_hostname_is_in_the_kernel_and_in_the_hosts_file() {
    let Some(servin) = Servin::new() else { return };
    let script = "hostname; grep -c '[[:space:]]box$' /etc/hosts; grep -q localhost /etc/hosts && echo local";
    servin.go(&["run", "-h", "box", BASE, "sh", "-c", script]).expect(0, "box\n1\nlocal\n");
}

#[test]
fn an_entrypoint_comes_before_the_command() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "--entrypoint", "echo", BASE, "one", "two"]).expect(0, "one two\n");
}

// ---- standard input ---------------------------------------------------------------------------------------------

#[test]
fn input_reaches_the_program_and_ends() {
    let Some(servin) = Servin::new() else { return };
    servin.go_with_input(&["run", "-i", BASE, "cat"], b"x\0y").expect(0, "x\0y");
}

#[test]
fn without_i_the_input_is_empty() {
    let Some(servin) = Servin::new() else { return };
    servin.go_with_input(&["run", BASE, "cat"], b"unseen").expect(0, "");
}

#[test]
fn megabytes_go_in_and_come_back_unchanged() {
    let Some(servin) = Servin::new() else { return };
    let input: Vec<u8> = (0..2_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let outcome = servin.go_with_input(&["run", "-i", BASE, "cat"], &input);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout == input, "{} of {} bytes came back", outcome.stdout.len(), input.len());
}

// ---- terminal ---------------------------------------------------------------------------------------------------

#[test]
fn without_t_no_stream_is_a_terminal() {
    let Some(servin) = Servin::new() else { return };
    let script = "for fd in 0 1 2; do test -t $fd && echo $fd; done; true";
    servin.go(&["run", BASE, "sh", "-c", script]).expect(0, "");
}

// ---- files ------------------------------------------------------------------------------------------------------

#[test]
fn a_volume_is_the_host_s_folder_in_both_directions() {
    let Some(servin) = Servin::on_any_host() else { return };
    let shared = servin.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from the host\n").unwrap();
    fs::set_permissions(shared.join("in"), fs::Permissions::from_mode(0o640)).unwrap();
    let volume = format!("{}:/data", shared.display());
    let script = "stat -c %a /data/in && cat /data/in && echo guest > /data/out && chmod 600 /data/out \
                  && ln -s out /data/link && mkdir /data/sub && mv /data/in /data/sub/moved";
    servin.go(&["run", "-v", &volume, BASE, "sh", "-c", script]).expect(0, "640\nfrom the host\n");
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "guest\n");
    assert_eq!(fs::metadata(shared.join("out")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_link(shared.join("link")).unwrap(), Path::new("out"));
    assert_eq!(fs::read_to_string(shared.join("sub/moved")).unwrap(), "from the host\n");
    assert!(!shared.join("in").exists());
}

#[test]
fn a_read_only_volume_cannot_be_written() {
    let Some(servin) = Servin::new() else { return };
    let shared = servin.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "kept").unwrap();
    let volume = format!("{}:/data:ro", shared.display());
    let script =
        "echo changed > /data/file; rm /data/file; touch /data/new; chmod 777 /data/file; cat /data/file";
    let outcome = servin.go(&["run", "-v", &volume, BASE, "sh", "-c", script]);
    assert_eq!(outcome.text(), "kept", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 4, "{outcome:?}");
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 1);
}

#[test]
fn a_single_file_can_be_a_volume() {
    let Some(servin) = Servin::new() else { return };
    let file = servin.folder().join("motd");
    fs::write(&file, "hello\n").unwrap();
    let volume = format!("{}:/etc/motd", file.display());
    servin
        .go(&["run", "-v", &volume, BASE, "sh", "-c", "cat /etc/motd; echo bye > /etc/motd"])
        .expect(0, "hello\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "bye\n");
}

#[test]
fn a_guest_does_not_leave_its_share() {
    let Some(servin) = Servin::new() else { return };
    let shared = servin.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(servin.folder().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", shared.join("link")).unwrap();
    let volume = format!("{}:/data", shared.display());
    let script = "cat /data/../secret /data/link /data/x/../../secret 2>/dev/null; echo > /data/link; true";
    servin.go(&["run", "-v", &volume, BASE, "sh", "-c", script]).expect(0, "");
    assert_eq!(fs::read_to_string(servin.folder().join("secret")).unwrap(), "secret");
}

#[test]
fn what_a_container_writes_is_gone_in_the_next() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", BASE, "sh", "-c", "echo x > /new && cat /new && rm /bin/ls"]).expect(0, "x\n");
    servin
        .go(&["run", BASE, "sh", "-c", "ls /new 2>/dev/null; test -x /bin/ls && echo ok"])
        .expect(0, "ok\n");
}

#[test]
fn a_read_only_root_refuses_writes_and_tmpfs_takes_them() {
    let Some(servin) = Servin::new() else { return };
    let script = "touch /new 2>/dev/null || echo refused; touch /scratch/new && echo taken; grep -c ' /scratch tmpfs ' /proc/mounts";
    servin
        .go(&["run", "--read-only", "--tmpfs", "/scratch", BASE, "sh", "-c", script])
        .expect(0, "refused\ntaken\n1\n");
}

#[test]
fn a_folder_can_be_the_root_file_system() {
    let Some(servin) = Servin::new() else { return };
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
    let Some(busybox) = busybox else {
        println!("skipped: no busybox-static here");
        return;
    };
    let root = servin.folder().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    servin
        .go(&["run", "--rootfs", root.to_str().unwrap(), "/bin/busybox", "echo", "mine"])
        .expect(0, "mine\n");
}

// ---- limits -----------------------------------------------------------------------------------------------------

#[test]
fn memory_and_processors_are_what_was_asked_for() {
    let Some(servin) = Servin::new() else { return };
    // The container's limit, and a machine that has a little more, for its kernel.
    let script = "nproc; cat /sys/fs/cgroup/memory.max; \
                  awk '/MemTotal/ { print ($2 > 262144 && $2 < 303104) }' /proc/meminfo";
    servin.go(&["run", "-m", "256m", "--cpus", "2", BASE, "sh", "-c", script]).expect(0, "2\n268435456\n1\n");
}

#[test]
fn a_container_runs_a_kernel_of_its_own() {
    let Some(servin) = Servin::new() else { return };
    let outcome = servin.go(&["run", BASE, "uname", "-r"]);
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_ne!(outcome.text(), host);
}

// ---- signals and what is left behind ----------------------------------------------------------------------------

#[test]
fn a_signal_to_servin_reaches_the_program() {
    let Some(servin) = Servin::new() else { return };
    let script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 1; done";
    let mut running = servin.start(&["run", BASE, "sh", "-c", script]);
    running.wait_for("ready\n");
    running.signal("TERM");
    let outcome = running.finish();
    outcome.expect(7, "ready\ncaught\n");
}

#[test]
fn a_run_leaves_no_process_behind() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "--rm", BASE, "true"]).expect(0, "");
    expect_no_process(&servin);
}

#[test]
fn a_container_whose_command_line_is_killed_ends_cleanly_by_itself() {
    let Some(servin) = Servin::new() else { return };
    let shared = servin.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/data", shared.display());
    let script = "echo ready; until test -e /data/go; do sleep 0.1; done; echo done > /data/result";
    let mut running = servin.start(&["run", "--rm", "-v", &volume, BASE, "sh", "-c", script]);
    running.wait_for("ready\n");
    running.signal("KILL");
    let _ = running.child.wait();
    fs::write(shared.join("go"), "").unwrap();
    expect_no_process(&servin);
    assert_eq!(fs::read_to_string(shared.join("result")).unwrap(), "done\n");
    let listed = servin.go(&["ps", "-a", "-q"]);
    listed.expect(0, "");
}

#[test]
fn a_killed_monitor_leaves_nothing_behind_and_the_next_command_sees_the_truth() {
    let Some(servin) = Servin::new() else { return };
    let mut running =
        servin.start(&["run", "--name", "box", BASE, "sh", "-c", "echo ready; exec sleep 1000"]);
    running.wait_for("ready\n");
    let command_line = running.child.id().to_string();
    let monitors: Vec<_> =
        pids_of(&servin.data_root()).into_iter().filter(|pid| *pid != command_line).collect();
    assert!(!monitors.is_empty(), "the command line is the only process");
    for pid in &monitors {
        let _ = std::process::Command::new("kill").args(["-s", "KILL", pid]).status();
    }
    let outcome = running.finish();
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
    assert!(!outcome.stderr.is_empty(), "it says nothing");
    expect_no_process(&servin);
    servin.go(&["ps", "-q"]).expect(0, "");
    let listed = servin.go(&["ps", "-a"]);
    assert!(listed.text().contains("box") && !listed.text().contains("Up"), "{listed:?}");
    let gone = servin.go(&["rm", "box"]);
    assert_eq!(gone.code, Some(0), "{gone:?}");
}

/// Waits until no process of this servin is left. Tearing a machine down may take a moment longer than the command.
#[track_caller]
fn expect_no_process(servin: &Servin) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let left = processes_of(&servin.data_root());
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes whose environment names this data root, whatever they call themselves: their command lines.
fn processes_of(data_root: &Path) -> Vec<String> {
    pids_of(data_root)
        .iter()
        .map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .map(|command| String::from_utf8_lossy(&command).replace('\0', " "))
        .collect()
}

/// As [`processes_of`]: their numbers.
fn pids_of(data_root: &Path) -> Vec<String> {
    let needle = format!("SERVIN_DATA_ROOT={}", data_root.display());
    let names =
        |environment: &[u8]| environment.split(|byte| *byte == 0).any(|word| word == needle.as_bytes());
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| fs::read(entry.path().join("environ")).is_ok_and(|environment| names(&environment)))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
