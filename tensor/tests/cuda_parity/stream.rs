//! Blocks of weights on their way to the device.

use crate::on_every_machine;
use attar_tensor::cuda::{BlockStream, slot_bytes};
use half::bf16;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of a block's parts, all different.
fn parts(block: usize, sizes: &[usize]) -> Vec<Vec<u8>> {
    let byte = |part: usize, i: usize| (i * 31 + part * 101 + block * 57) as u8;
    sizes.iter().enumerate().map(|(part, &len)| (0..len).map(|i| byte(part, i)).collect()).collect()
}

/// Parts shorter than, as long as and longer than a pinned buffer; more blocks than slots.
#[test]
fn every_block_arrives_whole_while_the_one_before_is_in_use() {
    on_every_machine(|cuda| {
        let sizes = [2 * 3 * 5, 2 * 64, 2 * 100 * 7, 2];
        let dims = [(3, 5), (1, 64), (100, 7), (1, 1)];
        let mut stream = BlockStream::new(cuda, slot_bytes(sizes), 128).unwrap();
        let load = |stream: &mut BlockStream, block| {
            let parts = parts(block, &sizes);
            stream.load(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        };
        load(&mut stream, 0);
        for block in 0..5 {
            // The last one is read with nothing behind it that would push it along.
            if block < 4 {
                load(&mut stream, block + 1);
            }
            let loaded = stream.block().unwrap();
            for (part, bytes) in parts(block, &sizes).iter().enumerate() {
                let found = cuda.download_items(loaded.matrix::<bf16>(part, dims[part])).unwrap();
                let truth: Vec<bf16> =
                    bytes.as_chunks::<2>().0.iter().map(|&bytes| bf16::from_le_bytes(bytes)).collect();
                let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&truth), "block {block}, part {part}");
            }
            stream.finish().unwrap();
        }
    });
}

#[test]
fn a_third_block_is_refused_while_two_are_in_use() {
    on_every_machine(|cuda| {
        let mut stream = BlockStream::new(cuda, 256, 64).unwrap();
        stream.load(&[&[1, 2, 3]]).unwrap();
        stream.load(&[&[4, 5, 6]]).unwrap();
        let third = catch_unwind(AssertUnwindSafe(|| stream.load(&[&[7]])));
        let words = third.unwrap_err();
        assert_eq!(words.downcast_ref(), Some(&"both slots are in use"));
    });
}
