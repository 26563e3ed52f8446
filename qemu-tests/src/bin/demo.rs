//! `scripts/demo`: one crash of a real kernel, and what is left of it. Prints the path of the
//! dump's directory.

use anyhow::{Result, ensure};
use qemu_tests::console;
use qemu_tests::kernel::Kernel;
use qemu_tests::readers;
use qemu_tests::scenario::Scenario;

fn main() -> Result<()> {
    let series = std::env::args().nth(1).unwrap_or_else(|| "6.1".into());
    let kernel = Kernel::of_series(&series)?;
    eprintln!("booting Debian kernel {} in QEMU, arming afterimage, panicking", kernel.version());
    console::show();
    let mut scenario = Scenario::new("demo", &kernel);
    scenario.config.level = 1; // what the product does by itself
    let outcome = scenario.run()?;
    let dump = outcome.dump()?;
    let dmesg = dump.dmesg()?;
    let lines: Vec<&str> = dmesg.lines().collect();
    let panic = lines.iter().position(|line| line.contains("sysrq: Trigger a crash")).unwrap_or(0);
    eprintln!("\nthe end of the old kernel's log (dmesg.txt):");
    lines.iter().skip(panic).take(12).for_each(|line| eprintln!("  {line}"));
    let same = readers::makedumpfile_dmesg(&dump.file("vmcore"))? == dmesg.as_bytes();
    ensure!(same, "makedumpfile finds another log in the dump than dmesg.txt");
    eprintln!("\nmakedumpfile reads the dump and finds the same log in it: {} lines", lines.len());
    println!("{}", dump.path.display());
    Ok(())
}
