// Predicts with an exported LeNet whose weights are linked in: ./predict FOLDER-OF-THE-BUNDLE
#include "lenet.hpp"

#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

extern "C" const std::uint32_t lenet_weights[];

int main(int count, char **arguments)
{
    const std::string folder = count > 1 ? arguments[1] : ".";
    std::ifstream file(folder + "/check/predict.in.x.bin", std::ios::binary | std::ios::ate);
    if (!file) {
        std::fprintf(stderr, "%s: no check/predict.in.x.bin there\n", folder.c_str());
        return 1;
    }
    std::vector<float> images(static_cast<std::size_t>(file.tellg()) / sizeof(float));
    file.seekg(0).read(reinterpret_cast<char *>(images.data()), static_cast<std::streamsize>(images.size() * sizeof(float)));
    const std::int64_t batch = static_cast<std::int64_t>(images.size()) / (32 * 32);
    std::vector<float> logits(static_cast<std::size_t>(batch) * 10);
    try {
        lenet_net::model model(lenet_weights, LENET_WEIGHTS_BYTES);
        model.predict(batch, images.data(), logits.data());
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    for (float value : logits) std::printf("%.9g\n", static_cast<double>(value));
    return 0;
}
