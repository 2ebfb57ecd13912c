#!/usr/bin/perl
# Answers every request with the id of its process.
use strict;
use warnings;
use FCGI;

my $process  = $ENV{FCGIMGR_PROCESS} // '';
my $stopping = 0;

# SIGTERM lets the request in hand finish; FAIL_ACCEPT_ON_INTR lets an Accept that waits return.
$SIG{TERM} = sub { $stopping = 1 };

my $request = FCGI::Request(\*STDIN, \*STDOUT, \*STDERR, \%ENV, 0, FCGI::FAIL_ACCEPT_ON_INTR);
while (!$stopping && $request->Accept() >= 0) {
    print "Content-Type: text/plain; charset=utf-8\r\n\r\n";
    print "Hello from Perl\nprocess $process\npid $$\nasked $ENV{REQUEST_METHOD} $ENV{REQUEST_URI}\n";
    $request->Finish();
}
