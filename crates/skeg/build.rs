//! Links the binary without position independence: the supervisors, one a Pod, run the same file,
//! and a position-independent one dirties its relocation pages in each of them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bin=skeg=-no-pie");
}
