//! Questions, asked of a made-up kernel, and answers that were written down.

use super::*;
use crate::kallsyms;
use crate::testing::{Encoding, MadeUp, types, with_kernel};

fn with_known<T>(look: impl FnOnce(&Read<'_>) -> T) -> T {
    let blob = types().blob();
    let made = MadeUp::new(Encoding::Relative, true, &blob, 10);
    let types = Types::parse(&blob).unwrap();
    with_kernel(&made.info, &made.bytes, |kernel| {
        let symbols = kallsyms::read(kernel).unwrap();
        look(&Read { symbols: &symbols, types: &types })
    })
}

#[test]
fn what_was_asked_is_answered_again() {
    with_known(|read| {
        let recorder = Recorder::new(read);
        let ask = |known: &dyn Knowledge| {
            (
                known.symbol("init_task"),
                known.offset("task_struct", "tasks.prev"),
                known.size_of("task_struct"),
                (known.member_size("task_struct", "comm"), known.elements("task_struct", "comm")),
                (
                    known.offset("task_struct", "no_such"),
                    known.symbol("no_such"),
                    known.value("no_such", "A"),
                ),
            )
        };
        let asked = ask(&recorder);
        assert!(asked.0.is_some());
        assert_eq!((asked.1, asked.2, asked.3), (Some(16), Some(48), (Some(16), Some(16))));
        assert_eq!(asked.4, (None, None, None));
        let answers = recorder.answers();
        assert_eq!(ask(&answers), asked);
        assert_eq!(Answers::parse(&answers.to_text()), answers);
        assert_eq!(ask(&Answers::parse("x symbol init_task\nsymbol\n")).0, None, "damage is no answer");
        assert_eq!(answers.0.len(), 5, "nothing is written down of what is not there");
        assert_eq!(answers.symbol("pid"), None, "it was not asked");
    });
}

#[test]
fn a_part_of_the_image_has_two_ends() {
    let answers = |pairs: &[(&str, u64)]| {
        Answers(pairs.iter().map(|(name, at)| (Question::Symbol(name).to_string(), *at)).collect())
    };
    let part = |known: &Answers| known.part(&["_text", "_stext"], &["_etext"]);
    assert_eq!(part(&answers(&[("_stext", 16), ("_etext", 32)])), Some((16, 32)));
    assert_eq!(part(&answers(&[("_text", 8), ("_stext", 16), ("_etext", 32)])), Some((8, 32)));
    assert_eq!(part(&answers(&[("_stext", 32), ("_etext", 16)])), None);
    assert_eq!(part(&answers(&[("_stext", 0), ("_etext", 1 << 40)])), None);
    assert_eq!(part(&answers(&[("_stext", 1)])), None);
}
