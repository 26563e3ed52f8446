//! What the first instructions of a function do to the stack (Intel SDM, volume 2).
//!
//! Only what compilers put there is understood; decoding ends at the first other instruction, and
//! what was seen up to there holds for the rest of the function.

use base::fields::Fields;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Prologue {
    /// Bytes from the stack pointer to the caller's stack.
    pub(crate) depth: u64,
    /// The same from BP, if it is a frame pointer.
    pub(crate) frame_pointer: Option<u64>,
    /// Registers that were pushed, by their numbers in DWARF, with the depth where each one is.
    pub(crate) saved: Vec<(u64, u8)>,
    /// Bytes of the instructions that were understood.
    pub(crate) len: u64,
}

/// DWARF's numbers of the registers that an instruction numbers 0 to 7.
const NUMBERS: [u8; 8] = [0, 2, 1, 3, 7, 6, 4, 5];

/// Reads the first instructions.
pub(crate) fn decode(code: &[u8]) -> Prologue {
    // The return address is on the stack.
    let mut found = Prologue { depth: 8, ..Prologue::default() };
    let mut rest = code;
    while let Some((len, ends)) = step(rest, &mut found) {
        rest = rest.get(len..).unwrap_or_default();
        if ends {
            break;
        }
    }
    found.len = base::addr::to_u64(code.len().saturating_sub(rest.len()));
    found
}

/// One instruction: its bytes, and whether the prologue ends with it.
fn step(code: &[u8], found: &mut Prologue) -> Option<(usize, bool)> {
    match code {
        // nop, what ftrace calls, a prefix of it; call, of __fentry__; a move of a constant
        [0x0f, 0x1f, 0x44, 0, 0, ..]
        | [0x66, 0x66, 0x66, 0x66, 0x90, ..]
        | [0x3e, 0x8d, 0x74, 0x26, 0, ..]
        | [0xe8 | 0xb8..=0xba, _, _, _, _, ..] => Some((5, false)),
        // endbr64, and what replaces it
        [0xf3, 0x0f, 0x1e, 0xfa, ..] | [0x66, 0x0f, 0x1f, 0, ..] | [0x0f, 0x1f, 0x40, 0 | 0xd6, ..] => {
            Some((4, false))
        }
        // mov %rsp,%rbp
        [0x48, 0x89, 0xe5, ..] | [0x48, 0x8b, 0xec, ..] => {
            found.frame_pointer = Some(found.depth);
            Some((3, false))
        }
        // sub $n,%rsp
        [0x48, 0x83, 0xec, bytes, ..] => {
            found.depth = found.depth.saturating_add(u64::from(*bytes & 0x7f));
            Some((4, true))
        }
        [0x48, 0x81, 0xec, ..] => {
            found.depth = found.depth.saturating_add(Fields(code).u32(3)?.into());
            Some((7, true))
        }
        // push
        [push @ 0x50..=0x57, ..] => {
            let number = NUMBERS.get(usize::from(push & 7)).copied()?;
            pushed(found, number);
            Some((1, false))
        }
        [0x41, push @ 0x50..=0x57, ..] => {
            pushed(found, (push & 7).saturating_add(8));
            Some((2, false))
        }
        // moves between registers
        [0x48 | 0x49, 0x89, ..] => Some((3, false)),
        [0x89 | 0x31, ..] => Some((2, false)),
        _ => None,
    }
}

fn pushed(found: &mut Prologue, register: u8) {
    found.depth = found.depth.saturating_add(8);
    found.saved.push((found.depth, register));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_and_the_frame_are_found() {
        // nopl; push %rbp; mov %rsp,%rbp; push %r12; push %rbx; sub $0x20,%rsp; then something else
        let code = [
            0x0f, 0x1f, 0x44, 0, 0, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x54, 0x53, 0x48, 0x83, 0xec, 0x20, 0x65,
            0x48,
        ];
        let found = decode(&code);
        assert_eq!(
            found,
            Prologue {
                depth: 8 + 24 + 0x20,
                frame_pointer: Some(16),
                saved: vec![(16, 6), (24, 12), (32, 3)],
                len: 16,
            }
        );
    }

    #[test]
    fn any_bytes_end() {
        for seed in 0..=255_u8 {
            let code: Vec<u8> =
                (0..64_u8).map(|at| seed.wrapping_mul(37).wrapping_add(at.wrapping_mul(91))).collect();
            assert!(decode(&code).len <= 70);
        }
        assert_eq!(decode(&[]).depth, 8);
        assert_eq!(decode(&[0x48, 0x81, 0xec]).len, 0);
    }
}
