//! Two processes that fill every vector register and look at them again after many context switches: on a host that
//! emulates guest kernels, whose emulator lacks XSAVE, they keep them only by the instruction assist.

use std::path::Path;
use std::process::Command;

use servin_tests::machine::Servin;

#[test]
fn two_processes_keep_their_vector_registers_across_context_switches() {
    let Some(servin) = Servin::on_any_host() else { return };
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/build.sh");
    if !build.exists() || Command::new("gcc").arg("--version").output().is_err() {
        println!(
            "skipped: no gcc to build the guest's program with; the machine's own /dev/kvm runs this test"
        );
        return;
    }
    let programs = servin.folder().join("programs");
    let built = Command::new(build).arg(&programs).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let volume = format!("{}:/programs:ro", programs.display());
    let outcome =
        servin.go(&["run", "--rm", "-v", &volume, "servin/base", "/programs/vector-switch", "60", "2"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.text().matches(" 0 lost").count(), 2, "{}", outcome.text());
    println!("{}", outcome.text().trim());
}
