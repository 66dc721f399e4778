/* What gdb looks at. */
__attribute__((noinline)) int place(int a)
{
    return a * 3;
}

int main(void)
{
    int result = place(14);
    return result != 42;
}
