//! How the program is linked.

use std::fmt::Write as _;
use std::path::Path;

/// What one `servin run` runs of this program, by the names that the linker knows, without the hash that each build gives
/// anew. `scripts/profile.sh` makes it.
const HOT: &str = "hot-functions.txt";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={HOT}");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    // The unwinder and the compiler's helpers come with the program: a library less to be found, mapped and bound at
    // every start, and forked with every monitor.
    println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    println!("cargo::rustc-link-lib=static:-bundle=gcc");
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        // Functions of a start stand together: few pages to be mapped, where they would be all over the program.
        let out = std::env::var("OUT_DIR").expect("cargo names OUT_DIR");
        let script = Path::new(&out).join("hot-functions.lds");
        let names = std::fs::read_to_string(HOT).expect("hot-functions.txt lies beside build.rs");
        std::fs::write(&script, together(&names)).expect("OUT_DIR can be written to");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
        // Relocations in a few KiB instead of more than half a MiB that every start reads (glibc 2.36).
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// A linker script that puts the functions of this list into a section of their own. A name that is no function any more
/// does no harm.
fn together(names: &str) -> String {
    let mut script = String::from("SECTIONS {\n  .text.hot_functions : {\n");
    for name in names.lines() {
        let hash = if name.starts_with("_ZN") { "17h*" } else { "" };
        let _ = writeln!(script, "    *(.text.{name}{hash})");
    }
    script.push_str("  }\n}\nINSERT BEFORE .text;\n");
    script
}
