//! Products and Gram matrices: the orientation of every operand, and numbers.

use crate::{assert_near, on_every_machine, random, rounded, tolerance, wide};
use attar_tensor::cuda::{Cuda, Element, Keep};
use half::bf16;
use ndarray::Array2;

fn products<T: Element, O: Element>(cuda: &Cuda) {
    // tokens, in_features, out_features; no two alike, so that an operand turned the wrong way does not fit.
    for (t, i, o) in [(5, 16, 24), (1, 8, 40), (33, 64, 8)] {
        let x = rounded::<T>(&random((t, i), 1));
        let w = rounded::<T>(&random((o, i), 2));
        let d_out = rounded::<T>(&random((t, o), 3));
        let [on_x, on_w, on_d] = [&x, &w, &d_out].map(|x| cuda.upload::<T>(x.view()).unwrap());
        let [x, w, d_out] = [&x, &w, &d_out].map(wide);
        let limit = tolerance::<O>();
        for keep in [Keep::Nothing, Keep::Sum] {
            let start =
                |dim| if keep == Keep::Sum { random(dim, 4) } else { Array2::from_elem(dim, f32::NAN) };
            let kept = |x: &Array2<f32>| wide(x).mapv(|x| if keep == Keep::Sum { x } else { 0.0 });
            let before = rounded::<O>(&start((t, o)));
            let mut found = cuda.upload::<O>(before.view()).unwrap();
            cuda.linear(found.view_mut(), on_x.view(), on_w.view(), keep).unwrap();
            let truth = x.dot(&w.t()) + kept(&before);
            assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), limit, "linear");

            let before = rounded::<O>(&start((t, i)));
            let mut found = cuda.upload::<O>(before.view()).unwrap();
            cuda.input_backward(found.view_mut(), on_d.view(), on_w.view(), keep).unwrap();
            let truth = d_out.dot(&w) + kept(&before);
            assert_near(
                cuda.download(found.view()).unwrap().view(),
                truth.view(),
                limit,
                "gradient of the input",
            );

            let before = start((o, i));
            let mut found = cuda.upload::<f32>(before.view()).unwrap();
            cuda.weight_backward(found.view_mut(), on_d.view(), on_x.view(), keep).unwrap();
            let truth = d_out.t().dot(&x) + kept(&before);
            assert_near(
                cuda.download(found.view()).unwrap().view(),
                truth.view(),
                1e-5,
                "gradient of the weight",
            );
        }
    }
}

#[test]
fn products_equal_their_definition_and_add_where_asked() {
    on_every_machine(|cuda| {
        products::<f32, f32>(cuda);
        products::<bf16, bf16>(cuda);
        products::<bf16, f32>(cuda);
    });
}

#[test]
fn a_product_of_rows_of_a_matrix_is_that_of_a_matrix_of_those_rows() {
    on_every_machine(|cuda| {
        let (x, w) = (random((9, 16), 1), random((8, 16), 2));
        let (on_x, on_w) = (cuda.upload::<f32>(x.view()).unwrap(), cuda.upload::<f32>(w.view()).unwrap());
        let mut found = cuda.zeros::<f32>((9, 8)).unwrap();
        cuda.linear(found.view_mut().rows(2, 6), on_x.view().rows(2, 6), on_w.view(), Keep::Nothing).unwrap();
        let mut truth = wide(&x).dot(&wide(&w).t());
        truth.slice_mut(ndarray::s![..2, ..]).fill(0.0);
        truth.slice_mut(ndarray::s![6.., ..]).fill(0.0);
        assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), 1e-5, "rows");
    });
}

fn gram<T: Element>(cuda: &Cuda) {
    for (tokens, features) in [(1, 8), (7, 40), (50, 136), (20, 300)] {
        let x = rounded::<T>(&random((tokens, features), 1));
        let on_device = cuda.upload::<T>(x.view()).unwrap();
        let mut found = cuda.zeros::<f32>((features, features)).unwrap();
        cuda.gram_add(&mut found, on_device.view().rows(0, tokens / 2)).unwrap();
        cuda.gram_add(&mut found, on_device.view().rows(tokens / 2, tokens)).unwrap();
        cuda.mirror(&mut found).unwrap();
        let found = cuda.download(found.view()).unwrap();
        assert_eq!(found, found.t(), "a Gram matrix is symmetric");
        assert_near(found.view(), wide(&x).t().dot(&wide(&x)).view(), 1e-5, &format!("{tokens}x{features}"));
    }
}

#[test]
fn a_gram_matrix_in_two_parts_equals_the_full_product_and_is_symmetric() {
    on_every_machine(|cuda| {
        gram::<f32>(cuda);
        gram::<bf16>(cuda);
    });
}
