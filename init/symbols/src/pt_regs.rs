//! `struct pt_regs` of x86_64 (arch/x86/include/asm/ptrace.h): what an entry into the kernel leaves on the
//! stack. Registers by their number in it; each has 8 bytes. `struct user_regs_struct` begins with the
//! same.

use base::addr::to_u64;

/// What the kernel pushes itself.
#[expect(missing_docs, reason = "the names of the registers")]
mod pushed {
    pub const R15: usize = 0;
    pub const R14: usize = 1;
    pub const R13: usize = 2;
    pub const R12: usize = 3;
    pub const BP: usize = 4;
    pub const BX: usize = 5;
    pub const R11: usize = 6;
    pub const R10: usize = 7;
    pub const R9: usize = 8;
    pub const R8: usize = 9;
    pub const AX: usize = 10;
    pub const CX: usize = 11;
    pub const DX: usize = 12;
    pub const SI: usize = 13;
    pub const DI: usize = 14;
}

pub use pushed::*;

/// The first of what the CPU pushes for an interrupt; before it is `orig_ax`.
pub const IP: usize = 16;
/// The selector of the code: its two lowest bits are 3 in user space.
pub const CS: usize = 17;
/// `RFLAGS`
pub const FLAGS: usize = 18;
/// The stack pointer.
pub const SP: usize = 19;
/// The selector of the stack.
pub const SS: usize = 20;
/// All of them.
pub const WORDS: usize = 21;

/// Bytes from the start to a register.
#[must_use]
pub fn offset(register: usize) -> u64 {
    to_u64(register).saturating_mul(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `BLANK` + `OFFSET(pt_regs_*)` of arch/x86/kernel/asm-offsets.c, as the BTF of kernels has them.
    #[test]
    fn registers_are_where_the_kernel_has_them() {
        let offsets =
            [R15, R12, BP, BX, R11, R8, AX, CX, DX, SI, DI, IP, CS, FLAGS, SP, SS, WORDS].map(offset);
        assert_eq!(offsets, [0, 24, 32, 40, 48, 72, 80, 88, 96, 104, 112, 128, 136, 144, 152, 160, 168]);
    }
}
