module answer

go 1.19
