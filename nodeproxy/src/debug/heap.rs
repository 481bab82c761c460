//! `/debug/pprof/heap`: what the allocator holds, in its own words.

use tikv_jemalloc_ctl::stats_print::{Options, stats_print};

/// The allocator's statistics as text.
pub(super) fn page() -> String {
    let mut options = Options::default();
    // One table for all arenas; one each would be as long as there are threads.
    options.skip_per_arena = true;
    let mut text = Vec::new();
    match stats_print(&mut text, options) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("the allocator tells nothing: {error}\n"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_allocator_says_how_much_is_allocated() {
        let page = super::page();
        assert!(page.contains("Allocated: ") && page.contains("resident: "), "{page}");
    }
}
