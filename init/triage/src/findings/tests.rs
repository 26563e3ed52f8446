//! A summary of pieces: what is kept where there is too much, and what people see.

use super::*;
use crate::cause::Kind;

fn frame(function: &str) -> Frame {
    Frame { function: function.to_owned(), offset: 16, module: None, how: "orc".to_owned() }
}

fn cpu(number: u32, crashed: bool) -> Cpu {
    let task = Task { pid: 40 + number, tgid: 40, comm: "sh\u{1b}[2J".to_owned(), ..Task::default() };
    let registers = vec![("rip".to_owned(), "0x1".to_owned())];
    Cpu { number, task: Some(task), crashed, user: false, registers, stack: vec![frame("panic"); 20] }
}

fn cause() -> Cause {
    Cause {
        kind: Kind::Oops,
        title: "BUG: kernel NULL pointer dereference".to_owned(),
        evidence: Vec::new(),
        function: Some("wedge".to_owned()),
        module: Some("breaker".to_owned()),
        task: Some((40, "sh".to_owned())),
    }
}

fn much() -> Findings {
    let mut findings = Findings::default();
    findings.add(Piece::Cause(cause()));
    findings.add(Piece::Cpu(cpu(0, true)));
    (1..2000).for_each(|number| findings.add(Piece::Cpu(cpu(number, false))));
    for pid in 0..2000 {
        let task = Task { pid, comm: "waits".to_owned(), ..Task::default() };
        findings.add(Piece::Blocked(Blocked { task, stack: vec![frame("schedule"); 30] }));
        let name = format!("module_{pid}");
        let row = ModuleRow { name, address: "0x1".to_owned(), taints: String::new() };
        findings.add(Piece::Module(row));
    }
    findings.add(Piece::Log(vec!["x".repeat(500); 200]));
    findings.add(Piece::Done);
    findings
}

#[test]
fn rows_have_an_end() {
    let findings = much();
    assert_eq!((findings.cpus.len(), findings.blocked.len()), (MAX_ROWS, MAX_ROWS));
    assert_eq!(findings.modules.len(), MAX_ROWS);
}

#[test]
fn what_says_most_fits_into_little_room() {
    let findings = much();
    for limit in [160 << 10, 64 << 10, 16 << 10] {
        let text = findings.to_text(limit);
        assert!(text.len() <= limit);
        assert!(text.starts_with("cause      BUG or exception in the kernel: BUG: kernel NULL"), "{text}");
        assert!(text.contains("wedge of module breaker") && text.contains("no room in a summary"), "{text}");
        let json = findings.to_json(limit);
        assert!(json.len() <= limit, "{} of {limit}", json.len());
        let read: Findings = serde_json::from_str(&json).unwrap();
        assert_eq!(read.cause, findings.cause);
        assert!(read.cpus[0].crashed && !read.cpus[0].stack.is_empty() && !read.missing.is_empty());
    }
    // Where all fits nothing is left out.
    let read: Findings = serde_json::from_str(&findings.to_json(usize::MAX)).unwrap();
    assert_eq!(read, findings);
}

#[test]
fn even_a_tiny_limit_is_kept() {
    let findings = much();
    for limit in [0, 100] {
        assert!(findings.to_text(limit).len() <= limit);
        assert!(findings.to_json(limit).len() <= limit);
    }
}

#[test]
fn names_do_nothing_to_a_terminal() {
    let mut findings = Findings::default();
    findings.add(Piece::Cpu(cpu(0, true)));
    let text = findings.to_text(usize::MAX);
    assert!(text.contains("sh\\u{1b}[2J"), "{text}");
    assert!(!text.chars().any(|c| c != '\n' && base::text::is_unsafe(c)), "{text}");
    assert!(text.contains("was ended before its end"), "it says that it is not whole: {text}");
}

#[test]
fn tasks_that_wait_at_one_place_stand_together() {
    let mut findings = Findings::default();
    for (pid, function) in [(7, "wait_for_disk"), (8, "wait_for_disk"), (9, "mutex_lock")] {
        let task = Task { pid, comm: "dd".to_owned(), ..Task::default() };
        findings.add(Piece::Blocked(Blocked { task, stack: vec![frame(function)] }));
    }
    let text = findings.to_text(usize::MAX);
    assert!(text.contains("PID 7 (dd), 8 (dd)\n"), "{text}");
    assert_eq!(text.matches("wait_for_disk").count(), 1, "{text}");
}

#[test]
fn a_later_piece_takes_the_place_of_an_earlier_one() {
    let mut findings = Findings::default();
    findings.add(Piece::Cause(Cause { kind: Kind::Panic, ..cause() }));
    findings.add(Piece::Cause(cause()));
    assert_eq!(findings.cause, Some(cause()));
    assert!(!findings.complete);
    findings.add(Piece::Done);
    assert!(findings.complete);
}
