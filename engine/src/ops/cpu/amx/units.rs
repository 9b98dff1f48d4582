//! The tile units themselves: leave to use them, and the product of two panels.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::arch::asm;
    use std::arch::is_x86_feature_detected as found;
    use std::arch::x86_64::__cpuid_count;
    use std::marker::PhantomData;
    use std::sync::LazyLock;

    use super::super::{Next, TILES_LEFT, TILES_RIGHT, Tile};
    use crate::device::Kernels;

    /// Whether this process may use tiles of bf16: the processor has them, and both the environment and the system
    /// give leave.
    pub(in crate::ops::cpu) fn available() -> bool {
        static FOUND: LazyLock<bool> = LazyLock::new(|| {
            const BF16: u32 = 1 << 22;
            const TILE: u32 = 1 << 24;
            let packs = Kernels::Amx.on()
                && found!("avx512f")
                && found!("avx512bw")
                && found!("avx512bf16");
            packs && __cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE && request()
        });
        *FOUND
    }

    /// Asks the system to keep the tiles of this process's threads; an older one, or one that keeps none, refuses.
    #[allow(unsafe_code)]
    fn request() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XTILEDATA: i64 = 18;
        let result: i64;
        // SAFETY: a system call with numbers for arguments; it changes the two registers that are named.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    /// Shapes of the tiles, as `ldtilecfg` reads them.
    #[repr(C, align(64))]
    struct Shapes([u8; 64]);

    /// Eight tiles of 16 rows of 64 bytes.
    static SHAPES: Shapes = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = 16;
            tile += 1;
        }
        Shapes(bytes)
    };

    /// This thread's tile units, ready for products; given back when dropped.
    pub(in crate::ops::cpu) struct Units(PhantomData<*const ()>);

    impl Units {
        /// # Panics
        /// Where there are none.
        #[allow(unsafe_code)]
        pub(in crate::ops::cpu) fn new() -> Self {
            assert!(available(), "tile units");
            // SAFETY: the process may use them, and reads 64 bytes.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES,
                    options(nostack, readonly));
            }
            Self(PhantomData)
        }

        /// The sum of the products of the terms, each of a panel of the left matrix and one of the right, to 32 rows of
        /// 48 that are `stride` apart; `next` is fetched meanwhile.
        ///
        /// # Safety
        /// All rows lie in memory that is borrowed for the product.
        #[allow(unsafe_code)]
        #[allow(clippy::too_many_lines, reason = "one loop, in instructions")]
        pub(in crate::ops::cpu) unsafe fn multiply<const N: usize>(
            &self,
            terms: [[&[Tile]; 2]; N],
            next: Next,
            y: *mut f32,
            stride: usize,
        ) {
            let steps = terms[0][0].len() / TILES_LEFT;
            for [left, right] in terms {
                assert_eq!(left.len(), steps * TILES_LEFT, "tiles of {steps} steps");
                assert_eq!(right.len(), steps * TILES_RIGHT, "tiles of {steps} steps");
            }
            assert!(steps > 0, "tiles");
            let terms = terms.map(|panels| panels.map(<[Tile]>::as_ptr));
            // Six sums stay in tiles 0 to 5. The left matrix is fetched two steps ahead into the first cache, what is
            // needed next of the right one into the second.
            // SAFETY: the units were made ready, all panels have `steps` steps, the caller has the rows of the product,
            // and fetching ahead reads no memory that is not there.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2",
                    "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
                    "2:",
                    "mov {a}, [{terms}]",
                    "mov {b}, [{terms} + 8]",
                    "mov {left}, {steps}",
                    ".p2align 5",
                    "3:",
                    "tileloadd tmm6, [{a} + {line}]",
                    "tileloadd tmm7, [{b} + {line}]",
                    "tdpbf16ps tmm0, tmm6, tmm7",
                    "prefetcht0 [{a} + 4096]", "prefetcht0 [{a} + 4160]", "prefetcht0 [{a} + 4224]",
                    "prefetcht0 [{a} + 4288]", "prefetcht0 [{a} + 4352]", "prefetcht0 [{a} + 4416]",
                    "tileloadd tmm6, [{a} + {line} + 1024]",
                    "tdpbf16ps tmm3, tmm6, tmm7",
                    "prefetcht0 [{a} + 4480]", "prefetcht0 [{a} + 4544]", "prefetcht0 [{a} + 4608]",
                    "prefetcht0 [{a} + 4672]", "prefetcht0 [{a} + 4736]", "prefetcht0 [{a} + 4800]",
                    "tileloadd tmm7, [{b} + {line} + 1024]",
                    "tdpbf16ps tmm4, tmm6, tmm7",
                    "prefetcht0 [{a} + 4864]", "prefetcht0 [{a} + 4928]", "prefetcht0 [{a} + 4992]",
                    "prefetcht0 [{a} + 5056]", "prefetcht0 [{a} + 5120]", "prefetcht0 [{a} + 5184]",
                    "tileloadd tmm6, [{a} + {line}]",
                    "tdpbf16ps tmm1, tmm6, tmm7",
                    "prefetcht0 [{a} + 5248]", "prefetcht0 [{a} + 5312]", "prefetcht0 [{a} + 5376]",
                    "prefetcht0 [{a} + 5440]", "prefetcht0 [{a} + 5504]", "prefetcht0 [{a} + 5568]",
                    "tileloadd tmm7, [{b} + {line} + 2048]",
                    "tdpbf16ps tmm2, tmm6, tmm7",
                    "prefetcht0 [{a} + 5632]", "prefetcht0 [{a} + 5696]", "prefetcht0 [{a} + 5760]",
                    "prefetcht0 [{a} + 5824]", "prefetcht0 [{a} + 5888]", "prefetcht0 [{a} + 5952]",
                    "tileloadd tmm6, [{a} + {line} + 1024]",
                    "tdpbf16ps tmm5, tmm6, tmm7",
                    "prefetcht0 [{a} + 6016]", "prefetcht0 [{a} + 6080]",
                    "mov {eighths}, {share}",
                    "4:",
                    "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]", "prefetcht1 [{next} + 128]",
                    "prefetcht1 [{next} + 192]", "prefetcht1 [{next} + 256]", "prefetcht1 [{next} + 320]",
                    "add {next}, 384",
                    "dec {eighths}",
                    "jnz 4b",
                    "add {a}, 2048",
                    "add {b}, 3072",
                    "dec {left}",
                    "jnz 3b",
                    "add {terms}, 16",
                    "dec {count}",
                    "jnz 2b",
                    "tilestored [{y} + {row}], tmm0",
                    "tilestored [{y} + {row} + 64], tmm1",
                    "tilestored [{y} + {row} + 128], tmm2",
                    "mov {a}, {row}",
                    "shl {a}, 4",
                    "add {a}, {y}",
                    "tilestored [{a} + {row}], tmm3",
                    "tilestored [{a} + {row} + 64], tmm4",
                    "tilestored [{a} + {row} + 128], tmm5",
                    terms = inout(reg) terms.as_ptr() => _,
                    count = inout(reg) N => _,
                    a = out(reg) _,
                    b = out(reg) _,
                    next = inout(reg) next.start => _,
                    share = in(reg) next.eighths,
                    eighths = out(reg) _,
                    steps = in(reg) steps,
                    left = out(reg) _,
                    line = in(reg) 64_usize,
                    row = in(reg) 4 * stride,
                    y = in(reg) y,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    impl Drop for Units {
        #[allow(unsafe_code)]
        fn drop(&mut self) {
            // SAFETY: the units were made ready by this thread.
            unsafe { asm!("tilerelease", options(nomem, nostack)) };
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(in crate::ops::cpu) use linux::{Units, available};

/// Elsewhere there are none.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none {
    use super::super::{Next, Tile};

    pub(in crate::ops::cpu) fn available() -> bool {
        false
    }

    pub(in crate::ops::cpu) struct Units;

    impl Units {
        pub(in crate::ops::cpu) fn new() -> Self {
            unreachable!("tile units")
        }

        #[allow(unsafe_code)]
        pub(in crate::ops::cpu) unsafe fn multiply<const N: usize>(
            &self,
            _terms: [[&[Tile]; 2]; N],
            _next: Next,
            _y: *mut f32,
            _stride: usize,
        ) {
            unreachable!("tile units")
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(in crate::ops::cpu) use none::{Units, available};
