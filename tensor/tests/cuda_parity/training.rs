//! The optimizer and the norm it clips by.

use crate::{assert_near, on_every_machine, random, rounded, wide};
use attar_tensor::Precision;
use attar_tensor::op::{AdamW, Moments};
use half::bf16;
use ndarray::Array2;

#[test]
fn steps_equal_the_cpus_and_their_definition_and_the_narrow_weight_follows() {
    on_every_machine(|cuda| {
        let adamw = AdamW { learning_rate: 0.05, beta1: 0.8, beta2: 0.95, eps: 1e-3, weight_decay: 0.3 };
        let start = random((7, 45), 1);
        let mut trained = cuda.trained(cuda.upload(start.view()).unwrap(), Precision::Bf16).unwrap();
        let (mut on_the_cpu, mut moments) = (start.clone().into_dyn(), Moments::zeros(&[7, 45]));
        let (mut w, mut m, mut v) =
            (wide(&start), Array2::<f64>::zeros((7, 45)), Array2::<f64>::zeros((7, 45)));
        let [rate, b1, b2, eps, decay] =
            [adamw.learning_rate, adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay].map(f64::from);
        for number in 1..8u32 {
            let gradient = random((7, 45), 10 + u64::from(number));
            let g = wide(&gradient) * 0.25;
            m = m * b1 + &g * (1.0 - b1);
            v = v * b2 + &g * &g * (1.0 - b2);
            let (left, right) = (1.0 - b1.powi(number as i32), 1.0 - b2.powi(number as i32));
            ndarray::Zip::from(&mut w).and(&m).and(&v).for_each(|w, &m, &v| {
                *w -= rate * (m / left / ((v / right).sqrt() + eps) + decay * *w);
            });
            let dynamic = gradient.view().into_dyn();
            adamw.step(number, on_the_cpu.view_mut(), dynamic, 0.25, &mut moments);
            let gradient = cuda.upload::<f32>(gradient.view()).unwrap();
            cuda.step(&mut trained, gradient.view(), adamw, number, 0.25).unwrap();
        }
        let found = cuda.download(trained.weight.view()).unwrap();
        assert_near(found.view(), w.view(), 1e-5, "the weight");
        let on_the_cpu = on_the_cpu.mapv(f64::from).into_dimensionality().unwrap();
        assert_near(found.view(), on_the_cpu.view(), 1e-6, "the weight on the CPU");
        assert_near(
            cuda.download(trained.read::<bf16>()).unwrap().view(),
            w.view(),
            1e-2,
            "the narrow weight",
        );
    });
}

#[test]
fn in_f32_products_read_the_weight_itself_and_what_was_written_is_followed() {
    on_every_machine(|cuda| {
        let (before, after) = (random((3, 5), 1), random((3, 5), 2));
        for precision in [Precision::F32, Precision::Bf16] {
            let mut trained = cuda.trained(cuda.upload(before.view()).unwrap(), precision).unwrap();
            cuda.write(trained.weight.view_mut(), after.view()).unwrap();
            cuda.follow(&mut trained).unwrap();
            let (found, expected) = match precision {
                Precision::F32 => (cuda.download(trained.read::<f32>()).unwrap(), after.clone()),
                Precision::Bf16 => (cuda.download(trained.read::<bf16>()).unwrap(), rounded::<bf16>(&after)),
            };
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn a_norm_is_that_of_all_arrays_laid_end_to_end() {
    on_every_machine(|cuda| {
        let (a, b) = (random((300, 200), 3), random((1, 7), 4));
        let truth: f64 = a.iter().chain(&b).map(|&x| f64::from(x).powi(2)).sum();
        let (a, b) = (cuda.upload(a.view()).unwrap(), cuda.upload(b.view()).unwrap());
        let mut total = cuda.zeros::<f64>((1, 1)).unwrap();
        cuda.add_squares(total.view_mut(), a.view()).unwrap();
        cuda.add_squares(total.view_mut(), b.view()).unwrap();
        let found = cuda.download_items(total.view()).unwrap()[0];
        assert!((found - truth).abs() < 1e-12 * truth, "{found} for {truth}");
    });
}
