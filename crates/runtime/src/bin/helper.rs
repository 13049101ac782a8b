//! The smallest program that can be a supervisor: what tests give to the runtime as its `exe`.

fn main() {
    let code = skeg_runtime::run_helper(std::env::args_os()).unwrap_or(2);
    std::process::exit(code);
}
