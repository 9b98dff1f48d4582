//! The `pyrograph` command.

mod cli;

/// The system's allocator gives large blocks back at once and asks for them again: up to a third of the
/// time of a network on the CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
