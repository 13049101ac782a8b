//! Links the binary without position independence: the supervisors, one a Pod, run the same file,
//! and a position-independent one dirties its relocation pages in each of them. A release folds
//! functions of one code into one, a thirtieth of its size, where the toolchain's own linker, which
//! can do that, is the default.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bin=skeg=-no-pie");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|own| own == value);
    let links_with_lld = is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if is("PROFILE", "release") && links_with_lld {
        println!("cargo:rustc-link-arg-bin=skeg=-Wl,--icf=all");
    }
}
