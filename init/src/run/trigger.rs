//! Why the capture kernel runs: a panic, or a planned switch and what was recorded for it.
//!
//! Where that cannot be told it is a panic, which promises least. Nothing here decides what is done
//! about it.

use std::io;

use base::addr::{PhysAddr, to_u64};
use base::facts::{Facts, Planned, Trigger, handover};
use vmcore::report::{Degradation, Summary};

/// The record of a planned switch, from the facts or from the handover page, which `read` reads;
/// `None` after a panic.
pub(super) fn discover(
    facts: &Facts,
    read: impl FnOnce(PhysAddr, u64) -> io::Result<Vec<u8>>,
    summary: &mut Summary,
) -> Option<Planned> {
    let found = facts.planned.clone().or_else(|| {
        let address = PhysAddr(facts.handover?);
        let page = read(address, to_u64(handover::PAGE_LEN)).map_err(|error| format!("reading it: {error}"));
        let record = page.and_then(|page| handover::decode(&page).transpose());
        let damaged = |cause| Degradation::Handover { address: address.0, cause };
        record.map_err(|cause| summary.degrade(damaged(cause))).ok().flatten()
    });
    if let Some(Planned { intent, .. }) = &found {
        let why = if intent.why.is_empty() { "no reason given" } else { &intent.why };
        // Both come from memory that anybody may have written to.
        log::info!("planned switch by {}: {}", intent.who.escape_debug(), why.escape_debug());
        summary.trigger = Some(Trigger::Planned);
        summary.intent = Some(intent.clone());
    } else {
        log::info!("the production kernel panicked");
        summary.trigger = Some(Trigger::Panic);
    }
    found
}

/// What is to be said about CPU registers.
pub(super) fn registers(cpus: u32, planned: Option<&Planned>) -> String {
    match (cpus, planned) {
        (0, Some(planned)) if !planned.intent.via_panic => {
            "none: planned switch without a panic; stacks of tasks are unwound from memory".to_owned()
        }
        (0, _) => "none: the kernel that crashed saved none".to_owned(),
        (1, _) => "of 1 CPU".to_owned(),
        (cpus, _) => format!("of {cpus} CPUs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::facts::Intent;

    fn planned(why: &str) -> Planned {
        let intent = Intent { who: "root".into(), why: why.into(), at: 7, ..Intent::default() };
        Planned { intent, live: None }
    }

    /// What is found with a handover page that holds `page`, and the degradations.
    fn found(facts: &Facts, page: io::Result<Vec<u8>>) -> (Option<Planned>, Summary) {
        let mut summary = Summary::default();
        let read = |address: PhysAddr, len: u64| {
            assert_eq!((address.0, len), (0x7fff_f000, 4096));
            page
        };
        let found = discover(facts, read, &mut summary);
        (found, summary)
    }

    fn with_page() -> Facts {
        Facts { handover: Some(0x7fff_f000), ..Facts::default() }
    }

    #[test]
    fn zeros_and_no_page_are_a_panic() {
        let (record, summary) = found(&with_page(), Ok(vec![0; 4096]));
        assert_eq!((record, summary.trigger, summary.intent), (None, Some(Trigger::Panic), None));
        assert!(summary.degradations.is_empty());
        let unread = Err(io::Error::other("nobody reads this"));
        assert_eq!(found(&Facts::default(), unread).0, None);
    }

    #[test]
    fn a_record_is_found_in_the_page_or_in_the_facts() {
        let page = handover::encode(&planned("maintenance")).unwrap();
        let (record, summary) = found(&with_page(), Ok(page.clone()));
        assert_eq!(record, Some(planned("maintenance")));
        assert_eq!(summary.trigger, Some(Trigger::Planned));
        assert_eq!(summary.intent.unwrap().why, "maintenance");
        // An image that was loaded for a switch by panic: its page is not asked.
        let facts = Facts { planned: Some(planned("by panic")), ..with_page() };
        assert_eq!(found(&facts, Ok(page)).0, Some(planned("by panic")));
    }

    #[test]
    fn a_damaged_page_is_told_and_counts_as_a_panic() {
        let mut page = handover::encode(&planned("x")).unwrap();
        page[30] ^= 1;
        for page in [Ok(page), Err(io::ErrorKind::PermissionDenied.into())] {
            let (record, summary) = found(&with_page(), page);
            assert_eq!((record, summary.trigger), (None, Some(Trigger::Panic)));
            let [Degradation::Handover { address: 0x7fff_f000, .. }] = summary.degradations[..] else {
                panic!("{:?}", summary.degradations)
            };
        }
    }

    #[test]
    fn missing_registers_have_a_reason() {
        let plain = planned("x");
        let mut by_panic = planned("x");
        by_panic.intent.via_panic = true;
        assert!(registers(0, Some(&plain)).starts_with("none: planned switch"));
        assert!(registers(0, Some(&by_panic)).starts_with("none: the kernel"));
        assert_eq!(registers(4, None), "of 4 CPUs");
    }
}
