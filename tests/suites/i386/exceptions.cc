// Exceptions through many frames, across threads, from constructors and through destructors; casts at run time.
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

struct Base {
    virtual ~Base() = default;
};
struct Derived : Base {
    int value = 9;
};

static int destroyed;
struct Guard {
    ~Guard() { destroyed++; }
};

struct Fails {
    Guard guard;
    Fails() { throw std::runtime_error("constructor"); }
};

static long double deep(int level, long double value)
{
    Guard guard;
    if (level == 0)
        throw std::out_of_range("bottom " + std::to_string((double)value));
    return deep(level - 1, value + 0.5L) * 2;
}

static void check(bool condition, int line)
{
    if (!condition) {
        std::fprintf(stderr, "line %d\n", line);
        std::exit(1);
    }
}
#define CHECK(condition) check(condition, __LINE__)

int main()
{
    for (int round = 0; round < 200; round++) {
        destroyed = 0;
        try {
            deep(50, round);
            CHECK(false);
        } catch (const std::logic_error &error) {
            CHECK(error.what() == "bottom " + std::to_string(round + 25.0));
        }
        CHECK(destroyed == 51);
    }
    try {
        std::make_unique<Fails>();
        CHECK(false);
    } catch (const std::exception &error) {
        CHECK(std::string(error.what()) == "constructor");
    }
    std::exception_ptr carried;
    std::thread([&] {
        try {
            std::vector<int>().at(3);
        } catch (...) {
            carried = std::current_exception();
        }
    }).join();
    try {
        std::rethrow_exception(carried);
    } catch (const std::out_of_range &) {
        destroyed = -1;
    }
    CHECK(destroyed == -1);
    std::unique_ptr<Base> base(new Derived), plain(new Base);
    CHECK(dynamic_cast<Derived &>(*base).value == 9 && !dynamic_cast<Derived *>(plain.get()));
    try {
        (void)dynamic_cast<Derived &>(*plain);
        CHECK(false);
    } catch (const std::bad_cast &) {
    }
    std::map<std::string, long long> numbers;
    for (int n = 0; n < 1000; n++)
        numbers[std::to_string(n)] = 1ll << (n % 63);
    CHECK(numbers.at("62") == 1ll << 62);
    return 0;
}
