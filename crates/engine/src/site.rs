//! Where a model drops something out: what tells the mask of one place from those of all others in
//! a pass. Masks, and with them every trained bit, follow from these numbers, so they never change.
//! It knows no generator.

/// One dropout site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Site(u32);

/// Of sites with a name.
const NAMED: u32 = 1 << 31;

/// Turned over where a pass uses the same layers for a second input; no pass has as many numbered
/// sites.
const SECOND_USE: u32 = 1 << 30;

impl Site {
    /// The site of a layer by the hash of its name: the same whichever other layers drop something
    /// out.
    pub fn named(hash: u64) -> Self {
        Site((hash >> 32) as u32 | NAMED)
    }

    /// The site that follows in the order of the model's code, from the default one on.
    pub(crate) fn next(self) -> Self {
        Site(self.0 + 1)
    }

    /// The same place in a second use of its layers.
    pub(crate) fn of_second_use(self) -> Self {
        Site(self.0 ^ SECOND_USE)
    }

    /// What the generator of masks takes.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_and_named_sites_and_their_second_uses_are_all_different() {
        let numbered = [Site::default(), Site::default().next()];
        let named = [Site::named(0), Site::named(1 << 32)];
        let all: Vec<u32> = (numbered.into_iter().chain(named))
            .flat_map(|site| [site, site.of_second_use()].map(Site::bits))
            .collect();
        let want = [
            0,
            0x4000_0000,
            1,
            0x4000_0001,
            0x8000_0000,
            0xc000_0000,
            0x8000_0001,
            0xc000_0001,
        ];
        assert_eq!(all, want);
    }
}
