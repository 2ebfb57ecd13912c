<?php
// For php-cgi, which is given its requests as they come.
function note(string $what): void
{
    file_put_contents(getenv('POSTED_LOG'), "$what\n", FILE_APPEND);
}

[$name, $before, $between] = explode(' ', file_get_contents('php://input'));
$middle = intdiv(strlen($name), 2);
note("begun $name");
usleep(1000 * (int) $before);
header('Content-Type: text/plain');
echo substr($name, 0, $middle);
flush();
usleep(1000 * (int) $between);
note("done $name");
echo substr($name, $middle), "\n";
