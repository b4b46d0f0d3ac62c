//! The KV cache: keys and values of the tokens so far, in pages that sequences share and give back.
//!
//! A sequence is a list of row numbers, which attention reads through. Sequences that have a
//! beginning in common share its pages; one that goes on in a shared page gets a copy of its own
//! first. A page that no sequence holds is used again. It knows no tokens: a caller says how many
//! there are. Source: Kwon et al. 2023, "PagedAttention".

use std::collections::BTreeMap;

use crate::call::{Call, Rows, RowsMut};
use crate::device::Device;
use crate::meter::Purpose;
use crate::tape::Var;
use crate::tensor::Tensor;

/// Rows of a page: a copy of one is small beside a step, and a page is long enough to read fast.
const PAGE_ROWS: usize = 16;

/// Pages that the pools have room for at first.
const FIRST_PAGES: usize = 4;

/// Names one sequence of its [`KvCache`]; a number is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// Keys and values [rows, Hkv·Dh] of every layer, as the device stores activations, for sequences
/// that come and go.
#[derive(Debug, Default)]
pub struct KvCache {
    /// Keys and values of each layer: as many rows as pages have, once there is any.
    pools: Vec<Option<[Tensor; 2]>>,
    pages: Pages,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
}

/// The rows of one sequence in the pools, token by token. Its pages are those of the rows.
#[derive(Debug, Default, Clone)]
struct Sequence {
    rows: Vec<u32>,
}

impl Sequence {
    fn pages(&self) -> impl Iterator<Item = u32> {
        let firsts = self.rows.iter().step_by(PAGE_ROWS);
        firsts.map(|row| row / PAGE_ROWS as u32)
    }

    /// The last page, and how many of its rows are used, where it is not full.
    fn partial_page(&self) -> Option<(u32, usize)> {
        let used = self.rows.len() % PAGE_ROWS;
        let last = self.rows.last().filter(|_| used > 0)?;
        Some((last / PAGE_ROWS as u32, used))
    }
}

/// How many sequences hold each page, and which pages none holds.
#[derive(Debug, Default)]
struct Pages {
    holders: Vec<u32>,
    free: Vec<u32>,
}

impl Pages {
    /// A page for one sequence.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| {
            self.holders.push(0);
            self.holders.len() as u32 - 1
        });
        self.holders[page as usize] = 1;
        page
    }

    fn hold(&mut self, page: u32) {
        self.holders[page as usize] += 1;
    }

    fn give(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

impl KvCache {
    /// An empty cache of a model with so many layers.
    pub fn new(layers: usize) -> Self {
        KvCache {
            pools: (0..layers).map(|_| None).collect(),
            ..Self::default()
        }
    }

    /// A sequence without tokens.
    pub fn add(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// A sequence that shares the first `tokens` tokens of another. Panics if there are not as
    /// many.
    pub fn fork(&mut self, id: SequenceId, tokens: usize) -> SequenceId {
        let rows = self.sequences[&id].rows[..tokens].to_vec();
        let sequence = Sequence { rows };
        sequence.pages().for_each(|page| self.pages.hold(page));
        self.insert(sequence)
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, sequence);
        id
    }

    /// Gives back the pages of a sequence that no other holds. Panics for one that is not there.
    pub fn remove(&mut self, id: SequenceId) {
        let sequence = self
            .sequences
            .remove(&id)
            .expect("a sequence of this cache");
        sequence.pages().for_each(|page| self.pages.give(page));
    }

    /// Tokens of a sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequences[&id].rows.len()
    }

    /// The rows of a sequence's tokens in the pools, in order.
    pub fn rows(&self, id: SequenceId) -> &[u32] {
        &self.sequences[&id].rows
    }

    /// Rows that the pools have room for.
    pub fn capacity(&self) -> usize {
        let pool = self.pools.iter().flatten().next();
        pool.map_or(0, |[keys, _]| keys.rows())
    }

    /// Rows of pages that some sequence holds.
    pub fn rows_in_use(&self) -> usize {
        (self.pages.holders.len() - self.pages.free.len()) * PAGE_ROWS
    }

    /// Makes a place for `tokens` more tokens of a sequence: each layer then [writes](Self::write)
    /// their keys and values. Copies the page that the sequence goes on in, where others hold it
    /// too.
    pub fn extend(&mut self, id: SequenceId, tokens: usize) {
        let sequence = &self.sequences[&id];
        let shared = sequence.partial_page();
        let shared =
            shared.filter(|&(page, _)| tokens > 0 && self.pages.holders[page as usize] > 1);
        if let Some((page, used)) = shared {
            let own = self.pages.take();
            self.copy_page(page, own, used);
            self.pages.give(page);
            let rows = &mut self.sequences.get_mut(&id).expect("it is there").rows;
            let first = rows.len() - used;
            for (row, at) in rows[first..].iter_mut().zip(0..) {
                *row = own * PAGE_ROWS as u32 + at;
            }
        }
        let sequence = self.sequences.get_mut(&id).expect("it is there");
        for _ in 0..tokens {
            let row = match sequence.partial_page() {
                Some((page, used)) => page * PAGE_ROWS as u32 + used as u32,
                None => self.pages.take() * PAGE_ROWS as u32,
            };
            sequence.rows.push(row);
        }
    }

    fn copy_page(&mut self, from: u32, to: u32, rows: usize) {
        let start = |page: u32| page as usize * PAGE_ROWS;
        let needed = self.pages.holders.len();
        for pools in self.pools.iter_mut().flatten() {
            grow(pools, needed);
            for pool in pools {
                let device = pool.device().clone();
                let page = rows_of(&device, pool, start(from), rows);
                pool.copy_rows(start(to), &page, 0..rows);
            }
        }
    }

    /// Writes the keys and values of the last tokens of some sequences in one layer: `of` says how
    /// many each has, and they lie end to end in `k` and `v`. Panics if there are not as many rows.
    pub fn write(&mut self, layer: usize, k: &Var, v: &Var, of: &[(SequenceId, usize)]) {
        let rows: Vec<u32> = (of.iter())
            .flat_map(|(id, tokens)| {
                let rows = &self.sequences[id].rows;
                &rows[rows.len() - tokens..]
            })
            .copied()
            .collect();
        let needed = self.pages.holders.len();
        let pools = self.pools[layer].get_or_insert_with(|| {
            let new = |x: &Tensor| {
                let rows = needed.max(FIRST_PAGES) * PAGE_ROWS;
                Tensor::uninit_as(x.dtype(), x.device(), rows, x.cols(), Purpose::KvCache)
            };
            [new(k.tensor()), new(v.tensor())]
        });
        grow(pools, needed);
        for (out, x) in pools.iter_mut().zip([k.tensor(), v.tensor()]) {
            let (device, rows) = (out.device().clone(), &rows);
            device.run(Call::Scatter { x, rows, out });
        }
    }

    /// Keys and values of a layer. Panics if none were written.
    pub(crate) fn pools(&self, layer: usize) -> &[Tensor; 2] {
        self.pools[layer].as_ref().expect("attention has keys")
    }
}

/// Makes room for as many pages.
fn grow(pools: &mut [Tensor; 2], pages: usize) {
    for pool in pools {
        let rows = pool.rows();
        if rows >= pages * PAGE_ROWS {
            continue;
        }
        let room = (pages * PAGE_ROWS).max(2 * rows);
        let (dtype, device) = (pool.dtype(), pool.device().clone());
        let mut larger = Tensor::uninit_as(dtype, &device, room, pool.cols(), Purpose::KvCache);
        larger.copy_rows(0, pool, 0..rows);
        *pool = larger;
    }
}

/// A copy of some rows.
fn rows_of(device: &Device, x: &Tensor, first: usize, rows: usize) -> Tensor {
    let purpose = Purpose::Workspace;
    let mut copy = Tensor::uninit_as(x.dtype(), device, rows, x.cols(), purpose);
    device.run(Call::Copy {
        x: Rows::of(x, first..first + rows),
        out: RowsMut::of(&mut copy, 0..rows),
    });
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Tape, Trainables};

    /// The keys of a sequence in the first layer, one number a token.
    fn keys(cache: &KvCache, id: SequenceId) -> Vec<f32> {
        let all = cache.pools(0)[0].read();
        cache
            .rows(id)
            .iter()
            .map(|&row| all[row as usize])
            .collect()
    }

    fn push(cache: &mut KvCache, device: &Device, id: SequenceId, values: &[f32]) {
        let trainables = Trainables::default();
        let tape = Tape::inference(device, &trainables);
        let x = Tensor::from_slice(device, values.len(), 1, Purpose::Activations, values);
        let x = tape.constant(x);
        cache.extend(id, values.len());
        cache.write(0, &x, &x, &[(id, values.len())]);
    }

    #[test]
    fn forks_share_pages_until_they_go_on_and_pages_come_back() {
        let device = Device::cpu(Isa::Scalar, 1).expect("threads start");
        let mut cache = KvCache::new(1);
        let first: Vec<f32> = (0..20u8).map(f32::from).collect();
        let a = cache.add();
        push(&mut cache, &device, a, &first);
        assert_eq!(cache.rows_in_use(), 32);
        let b = cache.fork(a, 18);
        assert_eq!(cache.rows_in_use(), 32, "nothing is copied");
        push(&mut cache, &device, b, &[100.0]);
        push(&mut cache, &device, a, &[200.0]);
        assert_eq!(cache.rows_in_use(), 48, "the page that differs is copied");
        assert_eq!(cache.rows(a)[..16], cache.rows(b)[..16]);
        assert_eq!(keys(&cache, a), [&first[..], &[200.0]].concat());
        assert_eq!(keys(&cache, b), [&first[..18], &[100.0]].concat());
        cache.remove(a);
        assert_eq!(cache.rows_in_use(), 32);
        let c = cache.add();
        push(&mut cache, &device, c, &[7.0; 16]);
        assert_eq!(keys(&cache, b), [&first[..18], &[100.0]].concat());
        cache.remove(b);
        cache.remove(c);
        assert_eq!((cache.rows_in_use(), cache.pages.holders.len()), (0, 3));
    }

    #[test]
    fn sequences_that_come_and_go_keep_their_values_in_bounded_room() {
        let device = Device::cpu(Isa::Scalar, 1).expect("threads start");
        let mut cache = KvCache::new(1);
        let mut live: Vec<(SequenceId, Vec<f32>)> = Vec::new();
        let mut state = 3u64;
        for step in 0..600u16 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let random = (state >> 33) as usize;
            if live.len() < 5 {
                live.push((cache.add(), Vec::new()));
            } else if random.is_multiple_of(7) {
                let (id, _) = live.swap_remove(random % live.len());
                cache.remove(id);
            } else if random.is_multiple_of(5) && live.len() < 9 {
                let (id, values) = &live[random % live.len()];
                let tokens = random % (values.len() + 1);
                live.push((cache.fork(*id, tokens), values[..tokens].to_vec()));
            }
            let place = random % live.len();
            let (id, values) = &mut live[place];
            let new: Vec<f32> = (0..random % 9)
                .map(|i| f32::from(step) + i as f32 / 16.0)
                .collect();
            push(&mut cache, &device, *id, &new);
            values.extend(new);
            for (id, values) in live.iter().filter(|(_, values)| !values.is_empty()) {
                assert_eq!(&keys(&cache, *id), values, "step {step}");
            }
        }
        live.into_iter().for_each(|(id, _)| cache.remove(id));
        assert_eq!(cache.rows_in_use(), 0);
        assert!(cache.capacity() < 4096, "pages are used again");
    }
}
