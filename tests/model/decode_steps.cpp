// Draws a few images of a model with fixed weights, and prints the bits of every logit and token.
// tests/model/test_other_processors.py compares processors by it.

#include "decode.cpp"

#include <cstdio>

int main(int count, char** words) {
  constexpr int layers = 2, heads = 2, width = 64, hidden = 256, size = 64, steps = 40, sequences = 3, images = 2;
#if !defined(EMULATED)
  if (!pathar_supported()) return 3;
#endif
  uint64_t state = 7;
  const auto next = [&] { // SplitMix64: -1 .. 1
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u, z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return static_cast<float>((z ^ z >> 31) >> 40) * 0x1p-23f - 1.f;
  };
  std::vector<std::vector<float>> kept;
  const auto made = [&](int rows, int columns, float scale, float centre = 0.f) {
    auto& values = kept.emplace_back(static_cast<size_t>(rows) * columns);
    for (auto& value : values) value = centre + scale * next();
    return static_cast<const float*>(values.data());
  };
  std::vector<const float*> blocks;
  for (int layer = 0; layer < layers; ++layer)
    for (const float* each : {made(1, width, .2f, 1.f), made(1, width, .2f), made(3 * width, width, .2f), made(width, width, .2f),
                              made(1, width, .2f, 1.f), made(1, width, .2f), made(hidden, width, .2f), made(1, hidden, .2f),
                              made(width, hidden, .1f), made(1, width, .2f)})
      blocks.push_back(each);
  PatharModel model{};
  model.layers = layers, model.heads = heads, model.width = width, model.hidden = hidden, model.codebook_size = size;
  model.steps = steps, model.sequences = 2 * images, model.threads = count > 1 ? std::atoi(words[1]) : 1;
  model.blocks = blocks.data();
  model.norm_scale = made(1, width, .2f, 1.f), model.norm_shift = made(1, width, .2f);
  model.structure_head = made(size, width, .4f), model.appearance_head = made(size, width, .4f);
  model.label = made(3, width, 1.f), model.structure = made(size, width, 1.f), model.appearance = made(size + 1, width, 1.f);
  model.structure_position = made(steps, width, .3f), model.appearance_position = made(steps, width, .3f);
  model.cosine = made(4 * steps, width / heads / 2, 1.f), model.sine = made(4 * steps, width / heads / 2, 1.f);
  Decoder* decoder = pathar_create(&model);
  const int32_t sequence[] = {0, 1, 2}, label[] = {0, 2, 1}, label_row[] = {0, 2}, null_row[] = {1, 0, 2, 2};
  const int32_t top_k[] = {9, 0, 0, 5}, given[] = {-1, -1, -1, -1};
  const float cfg_scale[] = {2.f, 1.f, 1.f, 1.f}, temperature[] = {.9f, 1.f, 1.2f, 1.2f}, top_p[] = {.9f, 1.f, 1.f, .5f};
  int32_t ids[2 * images] = {0, size, 0, size};
  float log_probability[2 * images];
  for (int p = 0; p < steps; ++p) {
    const int32_t position[] = {p, p, p}, structure[] = {ids[0], ids[0], ids[2]};
    const int32_t begin = size, appearance[] = {p < 2 ? begin : ids[1], p < 2 ? begin : ids[1], p < 2 ? begin : ids[3]};
    float uniform[2 * images];
    for (float& value : uniform) value = next() * .499f + .5f;
    const PatharBatch batch{sequences, images, sequence, position, structure, appearance, label, label_row, null_row,
                            cfg_scale, temperature, top_p, top_k, uniform, given, ids, log_probability};
    pathar_step(decoder, &batch);
    for (int stream = 0; stream < 2; ++stream)
      for (int i = 0; i < sequences * size; ++i) std::printf("%08x ", bits<uint32_t>(pathar_logits(decoder, stream)[i]));
    for (int i = 0; i < 2 * images; ++i) std::printf("%d %.3f ", ids[i], log_probability[i]);
    std::printf("\n");
  }
  pathar_destroy(decoder);
}
