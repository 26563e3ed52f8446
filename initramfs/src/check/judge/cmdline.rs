//! The finding about the capture kernel's command line: what of the host's does not go there, and why.

use crate::check::finding::Finding;
use crate::check::observe::host::Host;
use crate::cmdline::left_out;
use crate::cmdline::table::Reason;

pub(super) fn finding(host: &Host) -> Finding {
    let id = "cmdline";
    let left_out = left_out(&host.cmdline);
    let mut reasons: Vec<Reason> = left_out.iter().map(|(_, reason)| *reason).collect();
    reasons.dedup();
    let of = |reason: &Reason| {
        let words: Vec<&str> =
            left_out.iter().filter(|(_, why)| why == reason).map(|(word, _)| word.as_str()).collect();
        format!("{} {}", words.join(" "), reason.text())
    };
    if reasons.is_empty() {
        return Finding::ok(id, "all of the host's parameters go on to the capture kernel");
    }
    let found = format!(
        "not for the capture kernel: {}; capture.cmdline_append puts back what must be there",
        reasons.iter().map(of).collect::<Vec<_>>().join("; ")
    );
    Finding::ok(id, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::observe::host::testing::healthy;

    #[test]
    fn what_is_left_out_is_told_with_the_reason() {
        let of = |cmdline: &str| finding(&Host { cmdline: cmdline.into(), ..healthy() }).found;
        assert_eq!(of("console=ttyS0"), "all of the host's parameters go on to the capture kernel");
        let found = of("console=ttyS0 unknown_nmi_panic panic_on_warn=1 xyzzy hugepages=9");
        assert!(
            found.contains("hugepages=9 is about memory that the capture kernel does not have"),
            "{found}"
        );
        assert!(found.contains("unknown_nmi_panic panic_on_warn=1 would turn"), "{found}");
        assert!(found.contains("xyzzy is not known") && !found.contains("console"), "{found}");
        assert!(found.contains("capture.cmdline_append"), "{found}");
    }
}
