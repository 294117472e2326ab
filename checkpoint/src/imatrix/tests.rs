#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use super::*;
use crate::gguf::{Value, Writer};
use crate::{Dtype, TensorInfo, encode_floats};

fn entry(sums: &[f32], counts: &[u64]) -> Entry {
    Entry::new("any", sums.to_vec(), counts.to_vec()).unwrap()
}

/// One weight, and a stack of three experts of which one was never reached.
fn example() -> ImportanceMatrix {
    let entries = [
        ("blk.0.attn_q.weight", entry(&[512.0, 0.0, 1536.0], &[1024])),
        ("blk.0.ffn_up_exps.weight", entry(&[2.0, 4.0, 0.0, 0.0, 3.0, 1.5], &[600, 0, 424])),
    ];
    ImportanceMatrix {
        entries: entries.map(|(name, entry)| (name.to_owned(), entry)).into(),
        datasets: vec!["a.txt".to_owned(), "b.txt".to_owned()],
        chunk_count: 2,
        chunk_size: Some(512),
        sha256: vec!["00ff".to_owned()],
    }
}

fn written(layout: Layout) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matrix");
    example().write(&path, Overwrite::No, layout).unwrap();
    (folder, path)
}

#[test]
fn a_gguf_reads_back_as_it_was() {
    let (_folder, path) = written(Layout::Gguf);
    assert_eq!(layout_at(&path), Some(Layout::Gguf));
    assert_eq!(ImportanceMatrix::read(&path).unwrap(), example());
}

/// It has one count for all experts, no token counts, and the last dataset only; the means are what they were.
#[test]
fn a_dat_keeps_the_means() {
    let (_folder, path) = written(Layout::Dat);
    assert_eq!(layout_at(&path), Some(Layout::Dat));
    let read = ImportanceMatrix::read(&path).unwrap();
    assert_eq!((read.chunk_size, read.chunk_count, &read.datasets[..]), (None, 2, &["b.txt".to_owned()][..]));
    let of = |name: &str| read.entries[name].means().collect::<Vec<_>>();
    assert_eq!(of("blk.0.attn_q.weight"), [0.5, 0.0, 1.5]);
    let experts = [2.0 / 600.0, 4.0 / 600.0, 1.0, 1.0, 3.0 / 424.0, 1.5 / 424.0];
    assert_eq!(of("blk.0.ffn_up_exps.weight"), experts);
    assert_eq!(read.entries["blk.0.attn_q.weight"].counts(), [2]);

    let mut in_tokens = read;
    in_tokens.assume_chunk_size(512);
    assert_eq!(in_tokens.entries["blk.0.attn_q.weight"], example().entries["blk.0.attn_q.weight"]);
}

#[test]
fn merged_sums_and_counts_add_up() {
    let mut merged = ImportanceMatrix::default();
    merged.merge(example()).unwrap();
    merged.merge(example()).unwrap();
    let doubled = entry(&[1024.0, 0.0, 3072.0], &[2048]);
    assert_eq!(merged.entries["blk.0.attn_q.weight"], doubled);
    assert_eq!(merged.entries["blk.0.ffn_up_exps.weight"].counts(), [1200, 0, 848]);
    assert_eq!((merged.chunk_count, merged.datasets.len(), merged.sha256.len()), (4, 4, 2));

    // One count stands for all experts, on either side.
    let (_folder, path) = written(Layout::Dat);
    let old = ImportanceMatrix::read(&path).unwrap();
    for (mut first, second) in [(example(), old.clone()), (old, example())] {
        first.merge(second).unwrap();
        assert_eq!(first.entries["blk.0.ffn_up_exps.weight"].counts(), [1624, 1024, 1448]);
        assert_eq!(first.entries["blk.0.attn_q.weight"], doubled);
    }
}

#[test]
fn other_shapes_are_not_merged_and_leave_all_as_it_was() {
    let mut own = example();
    let mut other = example();
    let wider = entry(&[1.0; 8], &[1, 1, 1, 1]);
    other.entries.insert("blk.0.ffn_up_exps.weight".to_owned(), wider);
    let error = own.merge(other).unwrap_err().to_string();
    assert!(error.contains("`blk.0.ffn_up_exps.weight` has 6 sums and 3 counts here, 8 and 4"), "{error}");
    assert_eq!(own, example());
}

#[test]
fn a_weight_changes_counts_and_no_mean() {
    for weight in [0.3, 2.0, 1e-9] {
        let mut weighed = example();
        weighed.weigh(weight);
        for (name, entry) in &weighed.entries {
            let means = example().entries[name].means().collect::<Vec<_>>();
            for (mean, before) in entry.means().zip(means) {
                assert!((mean - before).abs() <= 1e-6 * before, "{name} by {weight}: {mean} was {before}");
            }
        }
        assert_eq!(weighed.entries["blk.0.ffn_up_exps.weight"].counts()[1], 0);
    }
}

#[test]
fn only_importance_matrices_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("notes.txt");
    std::fs::write(&notes, "mine, and long enough to be taken for something else").unwrap();
    for layout in [Layout::Gguf, Layout::Dat] {
        assert!(matches!(example().write(&notes, Overwrite::Yes, layout), Err(Error::Exists { .. })));
    }
    let (_folder, path) = written(Layout::Dat);
    assert!(matches!(example().write(&path, Overwrite::No, Layout::Gguf), Err(Error::Exists { .. })));
    example().write(&path, Overwrite::Yes, Layout::Gguf).unwrap();
    assert_eq!(ImportanceMatrix::read(&path).unwrap(), example());
    assert_eq!(layout_at(folder.path()), None);
}

fn said(path: &Path) -> String {
    let error = ImportanceMatrix::read(path).unwrap_err();
    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[test]
fn every_lie_of_a_dat_is_found() {
    let (_folder, path) = written(Layout::Dat);
    let sound = std::fs::read(&path).unwrap();
    let name = 19; // bytes of `blk.0.attn_q.weight`
    let with = |at: usize, value: [u8; 4]| {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&value);
        bytes
    };
    let [calls, values, first] = [8 + name, 12 + name, 16 + name];
    let cases = [
        (Vec::new(), "within its number of entries"),
        (0i32.to_le_bytes().to_vec(), "no entries"),
        (with(0, (-1i32).to_le_bytes()), "number of entries is -1"),
        (with(0, i32::MAX.to_le_bytes()), "entry 3"),
        (with(4, i32::MAX.to_le_bytes()), "within the name of entry 1"),
        (with(4, (-7i32).to_le_bytes()), "length of the name of entry 1 is -7"),
        (with(4, 0i32.to_le_bytes()), "the name of entry 1 is no text"),
        (with(8, [0xff; 4]), "the name of entry 1 is no text"),
        (with(calls, (-1i32).to_le_bytes()), "number of chunks of `blk.0.attn_q.weight` is -1"),
        (with(values, 0i32.to_le_bytes()), "number of values of `blk.0.attn_q.weight` is 0"),
        (with(values, i32::MAX.to_le_bytes()), "within the values of `blk.0.attn_q.weight`"),
        (with(first, f32::NAN.to_le_bytes()), "sum 0 of `blk.0.attn_q.weight` is NaN"),
        (with(first + 4, f32::INFINITY.to_le_bytes()), "sum 1 of `blk.0.attn_q.weight` is inf"),
        (with(first, (-1.0f32).to_le_bytes()), "is -1: a sum of squares"),
        ([&sound[..], &[0]].concat(), "1 bytes follow"),
        (sound[..sound.len() - 1].to_vec(), "the name of its dataset"),
        ([&sound[..4], &sound[4..first + 12], &sound[4..first + 12]].concat(), "two entries are called"),
    ];
    for (bytes, part) in cases {
        std::fs::write(&path, bytes).unwrap();
        let said = said(&path);
        assert!(said.contains(part), "{said}, not {part}");
    }
    // What follows the entries may be missing.
    let dataset = 8 + "b.txt".len();
    std::fs::write(&path, &sound[..sound.len() - dataset]).unwrap();
    let read = ImportanceMatrix::read(&path).unwrap();
    assert_eq!((read.chunk_count, read.datasets.len(), read.entries.len()), (0, 0, 2));
}

/// Name, type, shape, and the value of every element.
type Tensors<'a> = &'a [(&'a str, Dtype, &'a [usize], f32)];

#[test]
fn every_lie_of_a_gguf_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matrix.gguf");
    let write = |tensors: &[(&str, Dtype, &[usize], f32)]| {
        let info =
            |(name, dtype, shape, _): &(&str, Dtype, &[usize], f32)| TensorInfo::new(*name, *dtype, shape);
        let infos: Vec<_> = tensors.iter().map(info).collect();
        let metadata = [("general.type".to_owned(), Value::from("imatrix"))];
        let mut writer = Writer::create(&path, Overwrite::Yes, &metadata, &infos).unwrap();
        for (name, dtype, shape, value) in tensors {
            let values = vec![*value; shape.iter().product()];
            writer.write(name, &encode_floats(*dtype, &values).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    };
    let [sums, counts] = ["a.in_sum2", "a.counts"];
    let cases: [(Tensors, &str); 9] = [
        (&[], "no entries"),
        (&[("a.weight", Dtype::F32, &[4], 1.0)], "no entries"),
        (&[(sums, Dtype::F32, &[1, 4], 1.0)], "`a` has sums and no counts"),
        (&[(counts, Dtype::F32, &[1, 1], 1.0)], "`a` has counts and no sums"),
        (&[(sums, Dtype::F16, &[1, 4], 1.0), (counts, Dtype::F32, &[1, 1], 1.0)], "stored as f16"),
        (&[(sums, Dtype::F32, &[1, 4], 1.0), (counts, Dtype::F32, &[3, 1], 1.0)], "4 sums and 3 counts"),
        (&[(sums, Dtype::F32, &[1, 4], f32::NAN), (counts, Dtype::F32, &[1, 1], 1.0)], "sum 0 of `a` is NaN"),
        (&[(sums, Dtype::F32, &[1, 4], -2.0), (counts, Dtype::F32, &[1, 1], 1.0)], "sum 0 of `a` is -2"),
        (&[(sums, Dtype::F32, &[1, 4], 1.0), (counts, Dtype::F32, &[1, 1], -1.0)], "count 0 of `a` is -1"),
    ];
    for (tensors, part) in cases {
        write(tensors);
        let said = said(&path);
        assert!(said.contains(part), "{said}, not {part}");
    }
    write(&[(sums, Dtype::F32, &[1, 4], 1.0), (counts, Dtype::F32, &[1, 1], 2.4)]);
    let read = ImportanceMatrix::read(&path).unwrap();
    assert_eq!((read.entries["a"].counts(), read.chunk_size), (&[2][..], Some(CHUNK_SIZE)));
}
