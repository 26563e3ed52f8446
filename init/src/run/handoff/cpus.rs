//! How many CPUs the next kernel can start.
//!
//! A kernel that starts on another CPU than the firmware's boot CPU takes itself for a crash kernel
//! and never starts that one (x86/topology: "Crash kernel detected. Disabling real BSP to prevent
//! machine INIT", 6.9). Whether the next kernel is one of those is not known beforehand, so it is
//! taken for one.

use base::facts::Facts;

/// CPUs to be expected; `cpuinfo` is that of this kernel. 0: the facts do not say how many there
/// are.
pub(super) fn expected(facts: &Facts, cpuinfo: &str) -> u32 {
    let lost = facts.boot_apic_id.is_some_and(|boot| !apic_ids(cpuinfo).any(|id| id == boot));
    if lost { facts.cpus.saturating_sub(1) } else { facts.cpus }
}

fn apic_ids(cpuinfo: &str) -> impl Iterator<Item = u32> {
    let values = cpuinfo.lines().filter_map(|line| line.strip_prefix("initial apicid")?.split_once(':'));
    values.filter_map(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\napicid\t\t: 7\ninitial apicid\t: 2\nfpu\t\t: yes\n\n";

    #[test]
    fn another_boot_cpu_costs_one() {
        let facts = |boot_apic_id| Facts { cpus: 4, boot_apic_id, ..Facts::default() };
        assert_eq!(expected(&facts(Some(2)), CPUINFO), 4);
        assert_eq!(
            expected(&facts(Some(7)), CPUINFO),
            3,
            "the current APIC id is not the one of the firmware"
        );
        assert_eq!(expected(&facts(Some(0)), ""), 3);
        assert_eq!(expected(&facts(None), CPUINFO), 4);
        assert_eq!(expected(&Facts { boot_apic_id: Some(9), ..Facts::default() }, CPUINFO), 0);
    }
}
