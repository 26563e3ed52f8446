//! The machine code between two kernels, position independent, for x86_64 in long mode with memory
//! mapped one to one.
//!
//! It takes a stack and a GDT of its own, page tables too if it is given any, computes the SHA-256
//! of what it is to start, and enters the kernel at its 64-bit entry with `boot_params` in rsi
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"). If the digest is wrong it says so on
//! a serial port and resets the machine: a machine that comes back without a dump is worth more
//! than one that hangs, or that runs who knows what.
//!
//! Unsafe, since machine code is: what keeps it in bounds is that parameters and code are built
//! together, see `kexec::trampoline`, and that nothing of it runs in our process but the digest.

use core::arch::global_asm;
use core::ops::Range;

/// Pages of code and constants; the parameters follow.
pub const CODE_PAGES: u64 = 1;

/// The initial state of SHA-256 (FIPS 180-4, 5.3.3).
pub const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Where in the code the base address of the GDT stands; as assembled, it is an offset into the
/// code.
pub const GDT_BASE_AT: Range<usize> = 0x12..0x1a;

/// What the code reads, at the beginning of the page behind it.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Kernel entry.
    pub entry: u64,
    /// boot_params.
    pub boot_params: u64,
    /// Page tables for four levels; 0: the ones in use stay.
    pub top4: u64,
    /// Page tables for five levels.
    pub top5: u64,
    /// I/O port of a 16550; 0 without.
    pub serial: u64,
    /// The right digest, as words.
    pub digest: [u32; 8],
    /// The last block of the digest.
    pub last_block: [u8; 64],
    /// Ranges in use.
    pub count: u64,
    /// Address and length of what is checked; lengths are multiples of 64.
    pub ranges: [(u64, u64); Self::RANGES],
}

impl Parameters {
    /// Room for ranges.
    pub const RANGES: usize = 16;

    /// As the code reads them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let mut out = words(&[self.entry, self.boot_params, self.top4, self.top5, self.serial]);
        out.extend(self.digest.iter().flat_map(|word| word.to_le_bytes()));
        out.extend(self.last_block);
        out.extend(words(&[self.count]));
        out.extend(self.ranges.iter().flat_map(|(at, len)| words(&[*at, *len])));
        out
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            entry: 0,
            boot_params: 0,
            top4: 0,
            top5: 0,
            serial: 0,
            digest: [0; 8],
            last_block: [0; 64],
            count: 0,
            ranges: [(0, 0); Self::RANGES],
        }
    }
}

global_asm!(
    r#"
    .pushsection .text.afterimage_trampoline, "ax", @progbits
    .balign 16
    .globl afterimage_trampoline, afterimage_trampoline_end, afterimage_trampoline_sha256
afterimage_trampoline:
    jmp     10f
    .balign 16
    .word   31                              # offset 0x10: limit and base of the GDT
    .quad   20f - afterimage_trampoline
10:
    cli
    cld
    lea     afterimage_trampoline(%rip), %r15
    lea     0x1000(%r15), %r14              # parameters
    lgdt    0x10(%r15)
    mov     $0x18, %eax
    mov     %eax, %ds
    mov     %eax, %es
    mov     %eax, %ss
    mov     %eax, %fs
    mov     %eax, %gs
    mov     0x10(%r14), %rax                # tables for four levels, or
    mov     %cr4, %rcx
    bt      $12, %rcx                       # CR4.LA57
    jnc     11f
    mov     0x18(%r14), %rax                # for five
11: test    %rax, %rax
    jz      12f
    mov     %rax, %cr3
12: lea     0x3000(%r15), %rsp              # the end of the page behind the parameters
    sub     $32, %rsp
    mov     %rsp, %rdi                      # the state of the digest
    lea     21f(%rip), %rsi
    mov     $8, %ecx
    rep movsl
    mov     0x88(%r14), %rbx                # ranges
    lea     0x90(%r14), %rbp
13: test    %rbx, %rbx
    jz      14f
    mov     %rsp, %rdi
    mov     (%rbp), %rsi
    mov     8(%rbp), %rdx
    shr     $6, %rdx
    call    afterimage_trampoline_sha256
    add     $16, %rbp
    dec     %rbx
    jmp     13b
14: mov     %rsp, %rdi
    lea     0x48(%r14), %rsi                # the last block
    mov     $1, %edx
    call    afterimage_trampoline_sha256
    mov     %rsp, %rsi
    lea     0x28(%r14), %rdi
    mov     $4, %ecx
    repe cmpsq
    jne     15f
    add     $32, %rsp
    mov     (%r14), %rax
    mov     8(%r14), %rsi
    xor     %ebx, %ebx
    xor     %ebp, %ebp
    xor     %edi, %edi
    pushq   $0x10
    push    %rax
    lretq

15: mov     0x20(%r14), %edi                # a serial port to complain to
    test    %edi, %edi
    jz      18f
    lea     23f(%rip), %rsi
16: lodsb
    test    %al, %al
    jz      18f
    mov     %al, %bl
    mov     $0x100000, %ecx                 # patience with a port that is not there
    lea     5(%rdi), %edx
17: in      %dx, %al
    test    $0x20, %al
    loopz   17b
    mov     %edi, %edx
    mov     %bl, %al
    out     %al, %dx
    jmp     16b
18: mov     $0x10000000, %ecx               # let the last words leave the port
    loop    .
    mov     $0xcf9, %edx                    # reset by the chipset,
    mov     $2, %al
    out     %al, %dx
    mov     $6, %al
    out     %al, %dx
    mov     $0x1000000, %ecx
    loop    .
    mov     $0xfe, %al                      # the keyboard controller,
    out     %al, $0x64
    mov     $0x1000000, %ecx
    loop    .
    lidt    22f(%rip)                       # or a triple fault
    int3
19: hlt
    jmp     19b

# void sha256(u32 state[8] rdi, const u8 *blocks rsi, u64 count rdx), System V calling convention
# (FIPS 180-4, 6.2)
afterimage_trampoline_sha256:
    push    %rbx
    push    %rbp
    push    %r12
    push    %r13
    push    %r14
    push    %r15
    sub     $280, %rsp                      # 64 words of the schedule, then the arguments
    mov     %rdi, 256(%rsp)
    mov     %rsi, 264(%rsp)
    mov     %rdx, 272(%rsp)
30: cmpq    $0, 272(%rsp)
    je      34f
    mov     264(%rsp), %rsi
    xor     %ecx, %ecx
31: mov     (%rsi,%rcx,4), %eax
    bswap   %eax
    mov     %eax, (%rsp,%rcx,4)
    inc     %ecx
    cmp     $16, %ecx
    jb      31b
32: mov     -8(%rsp,%rcx,4), %eax
    mov     %eax, %edx
    mov     %eax, %ebx
    ror     $17, %eax
    ror     $19, %edx
    shr     $10, %ebx
    xor     %edx, %eax
    xor     %ebx, %eax
    add     -28(%rsp,%rcx,4), %eax
    mov     -60(%rsp,%rcx,4), %edx
    mov     %edx, %ebx
    mov     %edx, %ebp
    ror     $7, %edx
    ror     $18, %ebx
    shr     $3, %ebp
    xor     %ebx, %edx
    xor     %ebp, %edx
    add     %edx, %eax
    add     -64(%rsp,%rcx,4), %eax
    mov     %eax, (%rsp,%rcx,4)
    inc     %ecx
    cmp     $64, %ecx
    jb      32b
    mov     256(%rsp), %rdi
    mov     (%rdi), %r8d                    # a to h
    mov     4(%rdi), %r9d
    mov     8(%rdi), %r10d
    mov     12(%rdi), %r11d
    mov     16(%rdi), %r12d
    mov     20(%rdi), %r13d
    mov     24(%rdi), %r14d
    mov     28(%rdi), %r15d
    lea     24f(%rip), %rsi
    xor     %ecx, %ecx
33: mov     %r12d, %eax
    mov     %r12d, %edx
    mov     %r12d, %ebx
    ror     $6, %eax
    ror     $11, %edx
    ror     $25, %ebx
    xor     %edx, %eax
    xor     %ebx, %eax
    add     %r15d, %eax
    mov     %r13d, %edx
    xor     %r14d, %edx
    and     %r12d, %edx
    xor     %r14d, %edx
    add     %edx, %eax
    add     (%rsi,%rcx,4), %eax
    add     (%rsp,%rcx,4), %eax
    mov     %r8d, %edx
    mov     %r8d, %ebx
    mov     %r8d, %ebp
    ror     $2, %edx
    ror     $13, %ebx
    ror     $22, %ebp
    xor     %ebx, %edx
    xor     %ebp, %edx
    mov     %r8d, %ebx
    mov     %r8d, %ebp
    and     %r9d, %ebx
    xor     %r9d, %ebp
    and     %r10d, %ebp
    xor     %ebp, %ebx
    add     %ebx, %edx
    mov     %r14d, %r15d
    mov     %r13d, %r14d
    mov     %r12d, %r13d
    lea     (%r11,%rax), %r12d
    mov     %r10d, %r11d
    mov     %r9d, %r10d
    mov     %r8d, %r9d
    lea     (%rax,%rdx), %r8d
    inc     %ecx
    cmp     $64, %ecx
    jb      33b
    add     %r8d, (%rdi)
    add     %r9d, 4(%rdi)
    add     %r10d, 8(%rdi)
    add     %r11d, 12(%rdi)
    add     %r12d, 16(%rdi)
    add     %r13d, 20(%rdi)
    add     %r14d, 24(%rdi)
    add     %r15d, 28(%rdi)
    addq    $64, 264(%rsp)
    decq    272(%rsp)
    jmp     30b
34: add     $280, %rsp
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %rbp
    pop     %rbx
    ret

    .balign 16
20: .quad   0, 0, 0x00af9a000000ffff, 0x00cf92000000ffff
21: .long   0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
22: .quad   0, 0
24: .long   0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5
    .long   0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174
    .long   0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da
    .long   0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967
    .long   0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85
    .long   0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070
    .long   0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3
    .long   0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
23: .asciz  "afterimage: the kernel to be started is damaged in memory (SHA-256): reset\r\n"
afterimage_trampoline_end:
    .popsection
"#,
    options(att_syntax)
);

unsafe extern "sysv64" {
    static afterimage_trampoline: u8;
    static afterimage_trampoline_end: u8;
    fn afterimage_trampoline_sha256(state: *mut u32, blocks: *const u8, count: u64);
}

/// The code with its constants, to be copied.
#[must_use]
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const afterimage_trampoline, &raw const afterimage_trampoline_end);
    // SAFETY:
    // - Both symbols are of the one section above, the second behind the first, so this is one
    //   object of this length.
    // - It lies in the program's text, which is readable, never written and never unmapped.
    unsafe { core::slice::from_raw_parts(start, end.addr().saturating_sub(start.addr())) }
}

/// Feeds whole blocks of 64 bytes to the digest, by the very code that checks a kernel; what is
/// left over is not looked at.
pub fn sha256(state: &mut [u32; 8], blocks: &[u8]) {
    let count = base::addr::to_u64(blocks.len() / 64);
    // SAFETY:
    // - The code follows the calling convention that it is declared with: it keeps the registers
    //   that it must, and its stack is its own.
    // - It writes to the 8 words of `state` and reads 64 bytes of each of `count` blocks, which lie
    //   in `blocks`.
    unsafe { afterimage_trampoline_sha256(state.as_mut_ptr(), blocks.as_ptr(), count) }
}
