"""A stated part of ONNX's own backend suite; ``docs/onnx_support.py`` runs all of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "onnx_support.md"
NAMES = """
test_abs test_adam test_adam_multiple test_add test_and2d
test_argmax_negative_axis_keepdims_random_select_last_index test_argmax_no_keepdims_example
test_argmin_no_keepdims_example test_asinh_example test_attention_4d test_attention_local_window_gqa_rank4_mask
test_averagepool_2d_precomputed_pads_count_include_pad
test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False test_basic_conv_with_padding
test_batchnorm_epsilon_training_mode test_batchnorm_example test_ceil_example test_clip_default_inbounds
test_clip_example test_concat_1d_axis_0 test_constant_pad test_conv_with_autopad_same
test_conv_with_strides_no_padding test_convtranspose test_convtranspose_group_2_image_3 test_cos_example
test_cumsum_1d test_depthtospace_example test_div test_dropout_default test_dropout_random_old test_edge_pad
test_einsum_transpose test_equal test_erf test_exp_example test_expand_dim_changed test_flatten_axis0
test_floor_example test_gather_1 test_gather_elements_0 test_gather_elements_negative_indices
test_gathernd_example_int32 test_gelu_default_1 test_gemm_all_attributes test_gemm_default_zero_bias
test_globalaveragepool test_globalmaxpool test_greater test_gridsample test_group_normalization_example
test_gru_defaults test_hardmax_example test_instancenorm_example
test_layer_normalization_3d_axis_negative_1_epsilon test_layer_normalization_4d_axis0 test_less
test_log_example test_logsoftmax_example_1 test_lppool_1d_default test_lrn test_lstm_defaults test_matmul_1d_3d
test_matmul_2d test_max_example test_maxpool_2d_uint8 test_maxpool_3d_dilations_use_ref_impl_large
test_maxunpool_export_without_output_shape test_min_example test_mod_mixed_sign_float64 test_momentum
test_momentum_multiple test_mul_example test_not_2d test_neg_example test_nllloss_NC
test_nllloss_NCd1d2d3_sum_weight_high_ii test_pow_example test_prelu_example
test_reduce_l1_do_not_keepdims_example test_reduce_l2_do_not_keepdims_example test_reduce_log_sum_desc_axes
test_reduce_log_sum_exp_do_not_keepdims_example test_reduce_max_do_not_keepdims_example
test_reduce_mean_do_not_keepdims_example test_reduce_min_do_not_keepdims_example
test_reduce_prod_do_not_keepdims_example test_reduce_sum_do_not_keepdims_example
test_reduce_sum_square_do_not_keepdims_example test_reduce_sum_square_negative_axes_keepdims_random
test_reflect_pad test_relu test_reshape_reordered_all_dims test_resize_downsample_scales_nearest
test_resize_downsample_sizes_nearest_not_smaller test_resize_upsample_scales_linear_half_pixel_symmetric
test_resize_upsample_scales_nearest test_rms_normalization_4d_axis0 test_round
test_scatter_elements_without_axis test_scatternd test_sce_NCd1d2d3_sum_weight_high_ii_log_prob test_sce_none
test_sigmoid test_simple_rnn_defaults test_sin_example test_slice test_slice_negative_axes test_softmax_example
test_spacetodepth test_split_equal_parts_1d_opset13 test_sqrt test_squeeze test_sub_example test_tan_example
test_tanh_example test_tile test_top_k test_transpose_all_permutations_0 test_unsqueeze_axis_0
test_where_example
""".split()  # noqa: SIM905  # as a list it has more quotes than names


@pytest.fixture(scope="module")
def suite() -> Any:
    """Return ONNX's tests by name."""
    return runpy.run_path(str(PAGE.with_suffix(".py")))["Suite"]()


@pytest.mark.parametrize("name", NAMES)
def test_onnx_agrees(suite: Any, name: str) -> None:
    """The suite compares with its own tolerances, 1e-3 relative for most."""
    outcome = suite.run(name)
    assert outcome.status == "passed", outcome.reason


def test_no_result_of_a_shape_counts_as_computed(suite: Any) -> None:
    """What importing alone tells is counted apart."""
    assert suite.run("test_shape").status == "known"


def test_what_is_not_supported_is_skipped_with_a_reason(suite: Any) -> None:
    outcome = suite.run("test_strnormalizer_export_monday_casesensintive_lower")
    assert outcome.status == "unsupported" and "dtype" in outcome.reason


def test_the_page_is_of_this_suite() -> None:
    """The generated page has as many passes as are promised, and explains each failure."""
    text = PAGE.read_text()
    passed, failed = (int(text.split(word)[0].split()[-1].strip("*")) for word in (" pass**", " fail,"))
    assert passed >= 1300 and failed == text.count("the exact result is 0 there")
