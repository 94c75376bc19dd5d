//! Two processes that fill every vector register and look at them again after many context switches: on a host that
//! emulates guest kernels, whose emulator lacks XSAVE, they keep them only by the instruction assist.

use servin_tests::machine::Servin;

#[test]
fn two_processes_keep_their_vector_registers_across_context_switches() {
    let Some(servin) = Servin::on_any_host() else { return };
    let Some(programs) = servin.programs() else { return };
    let volume = format!("{}:/programs:ro", programs.display());
    let outcome =
        servin.go(&["run", "--rm", "-v", &volume, "servin/base", "/programs/vector-switch", "60", "2"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.text().matches(" 0 lost").count(), 2, "{}", outcome.text());
    println!("{}", outcome.text().trim());
}
