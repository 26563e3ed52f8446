//! No target at all: the end of the log in the firmware's variables, for the next boot to find.

use crate::{PATIENCE, ensure_back};
use anyhow::{Context, Result, ensure};
use qemu_tests::kernel::Kernel;
use qemu_tests::scenario::Scenario;
use std::fs;

#[test]
fn without_a_target_the_end_of_the_log_is_in_the_firmware() -> Result<()> {
    let mut scenario = Scenario::new("firmware", &Kernel::of_series("6.1")?);
    scenario.patience = PATIENCE;
    scenario.shape.efi = true;
    scenario.crashkernel = "192M".into();
    scenario.config.device = "UUID=00000000-dead-4000-8000-000000000000".into();
    scenario.config.wait = 1;
    scenario.config.modules.push("efivarfs".into());
    let outcome = scenario.run()?;
    ensure_back(&outcome)?;
    outcome.ensure_said("variables of the firmware")?;
    let flash = fs::read(outcome.scratch("console-1.efivars")).context("the firmware's flash")?;
    let has = |bytes: &[u8]| flash.windows(bytes.len()).any(|window| window == bytes);
    // Names are UTF-16; this one is what efi-pstore looks for (include/linux/efi.h,
    // drivers/firmware/efi/efi-pstore.c).
    let name: Vec<u8> = "dump-type0-1-1-".encode_utf16().flat_map(u16::to_le_bytes).collect();
    ensure!(has(&name), "no variable of pstore's in the flash");
    ensure!(has(b"Kernel panic - not syncing"), "the panic is not in the flash");
    outcome.discard()
}
